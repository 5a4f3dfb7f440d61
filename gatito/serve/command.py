"""What `gatito serve` does."""

import asyncio
import signal

import torch

from gatito.errors import UserError
from gatito.eval.agent import load_checkpoint
from gatito.serve.config import ServeConfig
from gatito.serve.server import PolicyServer


def serve_checkpoint(checkpoint: str, config: ServeConfig) -> None:
    """Serve until SIGTERM or Ctrl-C; raises `UserError` where the address is taken."""
    config.token()  # before the weights are read
    torch.set_num_threads(config.threads)
    model, processor = load_checkpoint(checkpoint)
    server = PolicyServer(model, processor, config, checkpoint)

    def say(port: int) -> None:
        host = f"[{config.host}]" if ":" in config.host else config.host
        rate = f", {config.hz:g} Hz" if config.hz else ""
        print(f"ws://{host}:{port}: {len(processor.layouts)} tasks, {config.sessions} sessions{rate}", flush=True)

    async def run() -> None:
        for name in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(name, server.stop)
        await server.run(say)

    try:
        asyncio.run(run())
    except OSError as error:
        raise UserError(f"cannot listen on {config.host}:{config.port} ({error.strerror or error})") from None
    print("stopped: what was asked has been answered")
