"""What clients send about servers, in each version."""

from __future__ import annotations

import base64
import binascii
import json
import re
from ipaddress import ip_address
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    model_validator,
)
from pydantic_core import PydanticCustomError

from api.fields import Boolean, Description, Integer, Name, NonNegative, Positive, Text
from api.history import needs_networks, refuses_device_tags, takes_qualified_hostnames
from api.microversion import Body, since, until

USER_DATA_MAX = 65535
"""Characters of base64."""
_HINTS_MAX = 16384
_LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOSTNAME = re.compile(_LABEL)
_QUALIFIED = re.compile(rf"{_LABEL}(\.{_LABEL})*")


def invalid(message: str) -> PydanticCustomError:
    """What a validator raises: the sentence goes to the user as it is, braces and all."""
    return PydanticCustomError("value_error", "{reason}", {"reason": message})


def _base64(text: str) -> str:
    try:
        base64.b64decode(text.replace("\n", "").replace("\r", ""), validate=True)
    except (binascii.Error, ValueError):
        raise invalid("It is not a 'base64'") from None
    return text


def _hostname(text: str) -> str:
    qualified = takes_qualified_hostnames()
    pattern, longest = (_QUALIFIED, 255) if qualified else (_HOSTNAME, 63)
    if len(text) > longest or not pattern.fullmatch(text):
        raise invalid("It is not a valid hostname")
    return text


def _uuid(text: str) -> str:
    try:
        return str(UUID(text))
    except ValueError:
        raise invalid(f"'{text:.64}' is not a 'uuid'") from None


def _address(version: int) -> Any:
    def check(value: Any) -> str:
        if value in ("", None):
            return ""
        try:
            address = ip_address(value) if isinstance(value, str) else None
        except ValueError:
            address = None
        if address is None or address.version != version:
            raise invalid(f"It is not a 'ipv{version}'")
        return str(address)

    return BeforeValidator(check)


def _unique(values: list[str]) -> list[str]:
    if len(set(values)) < len(values):
        raise invalid("It has non-unique elements")
    return values


ShortDescription = Annotated[Description, StringConstraints(max_length=255)]
Hostname = Annotated[str, AfterValidator(_hostname)]
Uuid = Annotated[str, AfterValidator(_uuid)]
IPv4 = Annotated[str, _address(4)]
IPv6 = Annotated[str, _address(6)]
DiskConfig = Literal["AUTO", "MANUAL"]
MetadataKey = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9\-_:. ]{1,255}$")]
MetadataValue = Annotated[Text, StringConstraints(max_length=255)]
Metadata = dict[MetadataKey, MetadataValue]
TagName = Annotated[str, StringConstraints(min_length=1, max_length=60, pattern=r"^[^,/]*$")]
Tags = Annotated[list[TagName], Field(max_length=50), AfterValidator(_unique)]
_DeviceTag = Annotated[str, StringConstraints(min_length=1, max_length=60, pattern=r"^[^,/]*$")]


def _refuse_gap(values: Any) -> Any:
    if isinstance(values, dict) and "tag" in values and refuses_device_tags():
        raise PydanticCustomError(
            "extra_forbidden", "Additional properties are not allowed ('tag' was unexpected)"
        )
    return values


class RequestedNetwork(Body):
    """One network card: a network, with an address if wanted, or a port."""

    uuid: Uuid | None = None
    port: Uuid | None = None
    fixed_ip: IPv4 | None = None
    tag: Annotated[_DeviceTag | None, since("2.32")] = None

    @model_validator(mode="before")
    @classmethod
    def _gap(cls, values: Any) -> Any:
        return _refuse_gap(values)


class BlockDevice(Body):
    """One disk; only local disks made from the image or blank ones can be had."""

    boot_index: Integer | None = None
    delete_on_termination: Boolean = True
    destination_type: Literal["local", "volume"] | None = None
    device_name: str | None = Field(default=None, max_length=255)
    device_type: str | None = Field(default=None, max_length=255)
    disk_bus: str | None = Field(default=None, max_length=255)
    guest_format: str | None = Field(default=None, max_length=255)
    no_device: Boolean | None = None
    source_type: Literal["blank", "image", "snapshot", "volume"] | None = None
    tag: Annotated[_DeviceTag | None, since("2.32")] = None
    uuid: str | None = Field(default=None, max_length=255)
    volume_size: NonNegative | None = None
    volume_type: Annotated[str | None, since("2.67")] = None

    @model_validator(mode="before")
    @classmethod
    def _gap(cls, values: Any) -> Any:
        return _refuse_gap(values)


class NamedGroup(Body):
    """A security group by name or id."""

    name: Annotated[str, StringConstraints(min_length=1, max_length=255)]


def _word_or_list(value: Any) -> str:
    return "networks" if isinstance(value, str) else "list"  # errors name the tag


Networks = Annotated[
    Annotated[list[RequestedNetwork], Field(max_length=64), Tag("list")]
    | Annotated[Literal["auto", "none"], Tag("networks")],
    Discriminator(_word_or_list),
]


class CreateServer(Body):
    """A server to be."""

    name: Name
    flavor_ref: Annotated[str | int, Field(alias="flavorRef")]
    image_ref: Annotated[str | None, Field(alias="imageRef", max_length=2048)] = None
    networks: Networks | None = None
    security_groups: list[NamedGroup] = Field(default_factory=list, max_length=64)
    key_name: Annotated[str | None, StringConstraints(min_length=1, max_length=255)] = None
    user_data: Annotated[
        str | None,
        StringConstraints(max_length=USER_DATA_MAX),
        AfterValidator(lambda v: v if v is None else _base64(v)),
    ] = None
    metadata: Metadata = Field(default_factory=dict)
    config_drive: Boolean | None = None
    availability_zone: Annotated[str | None, StringConstraints(min_length=1, max_length=255)] = None
    min_count: Positive | None = None
    max_count: Positive | None = None
    return_reservation_id: Boolean = False
    admin_pass: Annotated[
        str | None, StringConstraints(min_length=1, max_length=255), Field(alias="adminPass")
    ] = None
    disk_config: Annotated[DiskConfig | None, Field(alias="OS-DCF:diskConfig")] = None
    access_ip_v4: Annotated[IPv4, Field(alias="accessIPv4")] = ""
    access_ip_v6: Annotated[IPv6, Field(alias="accessIPv6")] = ""
    block_device_mapping: list[dict[str, Any]] = Field(default_factory=list, max_length=255)
    block_device_mapping_v2: list[BlockDevice] = Field(default_factory=list, max_length=255)
    personality: Annotated[list[dict[str, Any]] | None, until("2.56")] = None
    description: Annotated[ShortDescription | None, since("2.19")] = None
    tags: Annotated[Tags | None, since("2.52")] = None
    trusted_image_certificates: Annotated[list[str] | None, since("2.63")] = None
    host: Annotated[str | None, since("2.74")] = None
    hypervisor_hostname: Annotated[str | None, since("2.74")] = None
    hostname: Annotated[Hostname | None, since("2.90")] = None

    @model_validator(mode="after")
    def _networks(self) -> CreateServer:
        if needs_networks():
            if self.networks is None:
                raise invalid("'networks' is a required property")
        elif isinstance(self.networks, str):
            raise invalid(f"networks: '{self.networks}' is not of type 'array'")
        return self


HOLD_HINT = "duranova:hold_on_failure"
"""The hint that lets a failed build wait for an operator, or not."""


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class Hints(Body):
    """Wishes for the scheduler; keys it does not know are kept for filters that may."""

    model_config = ConfigDict(extra="allow", populate_by_name=True)

    group: Uuid | None = None
    same_host: Annotated[list[Uuid] | None, BeforeValidator(_listed)] = None
    different_host: Annotated[list[Uuid] | None, BeforeValidator(_listed)] = None
    hold_on_failure: Annotated[Boolean | None, Field(alias=HOLD_HINT)] = None

    @model_validator(mode="before")
    @classmethod
    def _bounded(cls, values: Any) -> Any:
        if len(json.dumps(values, default=str)) > _HINTS_MAX:
            raise invalid("Scheduler hints are too long")
        return values


class CreateServerRequest(Body):
    """``{"server": …}``, with scheduler hints beside it."""

    server: CreateServer
    hints: Annotated[Hints | None, Field(alias="os:scheduler_hints")] = None
    old_hints: Annotated[Hints | None, Field(alias="OS-SCH-HNT:scheduler_hints")] = None
