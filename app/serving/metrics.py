"""Counters of the server for Prometheus. They name neither keys, adapters nor prompts."""

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


class Metrics:
    """Metrics of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own: dict[str, Any] = {"registry": self.registry}
        self.responses = Counter("hra_responses", "Answers to requests for pictures, by status.", ["status"], **own)
        self.pictures = Counter("hra_pictures", "Pictures drawn.", **own)
        self.seconds = Histogram(
            "hra_picture_seconds", "Seconds from the queue to the picture.",
            buckets=(0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 128), **own,
        )  # fmt: skip
        self.batch_sizes = Histogram("hra_batch_pictures", "Pictures in a batch.", buckets=(1, 2, 4, 8, 16, 32), **own)
        self.waiting = Gauge("hra_waiting_pictures", "Pictures in the queue.", **own)
        self.adapters = Gauge("hra_adapters", "Adapters in memory.", **own)
        self.adapter_bytes = Gauge("hra_adapter_bytes", "Bytes of the adapters in memory.", **own)
