"""The update that `mmjax train` runs, for benchmarks to time."""

from typing import Any

STEPS = 4  # updates in one turn
BATCHES = 4  # different batches that the turns cycle through


class Updates:
    """A run of `experiment` on one device, at its first step, with `batches` to be trained on in turn."""

    def __init__(self, experiment: Any, batches: list[dict]):
        import jax

        from mmjax.train import step

        self.block = jax.block_until_ready
        self.step = step.build(experiment, experiment.mesh.build(jax.devices()[:1]))
        self.batches = batches
        self.state = self.step.init(self.step.place(batches[0]))

    def update(self, batch: dict) -> float:
        """The loss, before it."""
        self.state, metrics = self.step.run(self.state, self.step.place(batch))
        return float(metrics["loss"])

    def turn(self) -> None:
        for i in range(STEPS):
            self.state, metrics = self.step.run(self.state, self.step.place(self.batches[i % BATCHES]))
        self.block((self.state, metrics))
