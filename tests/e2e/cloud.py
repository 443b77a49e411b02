"""The cloud in processes of its own, for the whole-stack tests: the one that the chaos runner uses."""

from chaos.cloud import NEWEST, UpCloud

__all__ = ["NEWEST", "UpCloud"]
