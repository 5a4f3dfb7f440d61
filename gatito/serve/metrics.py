"""What a server counts, for Prometheus."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Of one server; `text` is what `/metrics` answers."""

    def __init__(self, open_sessions: Callable[[], int]) -> None:
        """`open_sessions` says how many there are."""
        self._registry = CollectorRegistry()
        named = {"namespace": "gatito", "registry": self._registry}
        gauge = Gauge("sessions", "Open sessions", **named)  # type: ignore[arg-type]
        gauge.set_function(open_sessions)
        self.sessions = Counter("sessions_opened", "Sessions that were opened", **named)  # type: ignore[arg-type]
        self.refused = Counter("refused", "Connections that were refused", ["reason"], **named)  # type: ignore[arg-type]
        self.errors = Counter("errors", "Messages answered by an error", ["kind"], **named)  # type: ignore[arg-type]
        self.actions = Counter("actions", "Actions that were decided", **named)  # type: ignore[arg-type]
        self.missed = Counter("missed_deadlines", "Actions that came too late", **named)  # type: ignore[arg-type]
        self.latency = Histogram("answer_seconds", "From message to answer", buckets=SECONDS, **named)  # type: ignore[arg-type]
        self.step = Histogram("step_seconds", "Time of a decision", buckets=SECONDS, **named)  # type: ignore[arg-type]
        self.batch = Histogram("step_sessions", "Sessions of a decision", buckets=BATCHES, **named)  # type: ignore[arg-type]

    def on_step(self, count: int, seconds: float) -> None:
        """Count a decision in so many sessions."""
        self.actions.inc(count)
        self.step.observe(seconds)
        self.batch.observe(count)

    def text(self) -> str:
        """In Prometheus' text format."""
        return generate_latest(self._registry).decode()
