"""The verbs of the command line that generate, serve and play; what does it is imported when it is called."""

from typing import TYPE_CHECKING

from gatito.errors import UserError

if TYPE_CHECKING:
    from gatito.serve.config import ServeConfig


def serve(checkpoint: str | None, config: "ServeConfig", probe: bool = False) -> None:
    """Serve a checkpoint to robots and simulators: a policy server in openpi-client's wire format.

    Args:
        checkpoint: Folder of a run or checkpoint, or `hf:owner/name` on the hub; not needed with --probe.
        probe: Measure which recipes of the package keep up with --hz on this machine, instead of serving.
    """
    if probe:
        from gatito.serve.probe import DEFAULT_HZ, probe_recipes

        probe_recipes(config.hz or DEFAULT_HZ, threads=config.threads, int8=config.int8)
        return
    if checkpoint is None:
        raise UserError("missing: CHECKPOINT")
    try:
        from gatito.serve.command import serve_checkpoint
    except ImportError as error:
        raise UserError(f"gatito serve needs {error.name}: pip install 'gatito[serve]'") from None
    serve_checkpoint(checkpoint, config)
