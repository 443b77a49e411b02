"""What the record must say when a cloud has settled."""

from __future__ import annotations

from sqlmodel import select

from db.hosts import Claim
from db.network.tables import Port
from db.operations import Operation
from db.servers import Server
from db.session import open_engine, reading
from domain.states import LIVE_OPERATION_STATES
from tests.e2e.cloud import UpCloud


def all_active(cloud: UpCloud, count: int) -> bool:
    found = cloud.servers()
    failed = {i: s.get("fault") for i, s in found.items() if s["status"] == "ERROR"}
    assert not failed, failed
    return len(found) == count and all(s["status"] == "ACTIVE" for s in found.values())


def check_record(cloud: UpCloud, count: int) -> None:
    """Claims are the servers, each port belongs to a server, no operation is live."""
    engine = open_engine(f"sqlite:///{cloud.data_dir}/duranova.db")
    with reading(engine) as session:
        servers = {s.id: s for s in session.exec(select(Server)) if s.deleted_at is None}
        claims = {c.server_id: c.host for c in session.exec(select(Claim))}
        ports = {p.device_id for p in session.exec(select(Port)) if p.device_id}
        live = [o for o in session.exec(select(Operation)) if o.state in LIVE_OPERATION_STATES]
    engine.dispose()
    assert len(servers) == count
    assert claims == {i: s.host for i, s in servers.items()}
    assert ports == set(servers)
    assert live == []
