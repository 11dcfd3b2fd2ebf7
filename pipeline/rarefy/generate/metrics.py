"""A run's figures as Ray metrics, which a cluster's Prometheus collects. jobs/grafana.json shows them."""

from __future__ import annotations

from ray.util.metrics import Counter, Gauge

from rarefy.generate.events import Event, What
from rarefy.generate.progress import Status

# Ray's exporter puts "ray_" before each name, and Prometheus "_total" after a counter's.
GAUGES = {
    "rarefy_images_done": "Images that are committed or in progress, of the whole run",
    "rarefy_images_planned": "Images of the whole run",
    "rarefy_images_per_second": "Mean rate of this driver since its first actor was ready",
    "rarefy_eta_seconds": "Expected time until the run is finished",
    "rarefy_actors_ready": "Actors that have loaded their models",
    "rarefy_actors_wanted": "Actors asked for",
    "rarefy_acceptance_ratio": "Fraction of drawn images that passed [accept], 0 to 1",
    "rarefy_confidence": "Mean probability of the wanted class over all images drawn, 0 to 1",
    "rarefy_entropy_nats": "Mean entropy of the classifier's prediction over all images drawn",
    "rarefy_step_seconds": "Mean time of one sampler step of one batch",
}
COUNTERS = {
    "rarefy_images": "Images made by this driver's actors",
    "rarefy_retries": "Attempts at shards that failed, by whose fault it was",
    "rarefy_shards_given_up": "Shards that this driver tries no more",
    "rarefy_actors_lost": "Actors that died, hung or were taken away, by machine",
}
RUN_TAGS = ("run", "driver")


class RunMetrics:
    """Records a run's status and events. Use it only in a process that is connected to Ray."""

    def __init__(self, run: str, driver: str) -> None:
        tags = {"run": run, "driver": driver}
        self._gauges = {name: Gauge(name, text, RUN_TAGS) for name, text in GAUGES.items()}
        extra = {"rarefy_retries": ("blame",), "rarefy_actors_lost": ("blame", "node")}
        self._counters = {
            name: Counter(name, text, (*RUN_TAGS, *extra.get(name, ()))) for name, text in COUNTERS.items()
        }
        for metric in (*self._gauges.values(), *self._counters.values()):
            metric.set_default_tags(tags)
        self._resumed = self._counted = 0.0

    def status(self, status: Status) -> None:
        """Record a status. The counter of images only grows: what a lost actor had begun is not subtracted."""
        values = {
            "rarefy_images_done": status.done,
            "rarefy_images_planned": status.total,
            "rarefy_images_per_second": status.images_per_second,
            "rarefy_eta_seconds": status.eta_s,
            "rarefy_actors_ready": status.actors_alive,
            "rarefy_actors_wanted": status.actors_wanted,
            "rarefy_acceptance_ratio": status.acceptance,
            "rarefy_confidence": status.confidence,
            "rarefy_entropy_nats": status.entropy,
            "rarefy_step_seconds": status.step_seconds,
        }
        for name, value in values.items():
            self._gauges[name].set(value)
        if status.resumed != self._resumed:  # run makes damaged shards again
            self._resumed, self._counted = status.resumed, 0.0
        new = status.done - status.resumed - self._counted
        if new > 0:
            self._counted += new
            self._counters["rarefy_images"].inc(new)

    def event(self, event: Event) -> None:
        """Count an event."""
        blame = {"blame": "unknown" if event.blame is None else event.blame.value}
        if event.what is What.RETRY:
            self._counters["rarefy_retries"].inc(1, blame)
        elif event.what is What.GIVEN_UP:
            self._counters["rarefy_shards_given_up"].inc(1)
        elif event.what is What.ACTOR_LOST:
            self._counters["rarefy_actors_lost"].inc(1, blame | {"node": event.host or event.node or "unknown"})
