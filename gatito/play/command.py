"""What `gatito play` does."""

import asyncio
import signal
import threading
import webbrowser

import torch

from gatito.errors import UserError
from gatito.eval.agent import load_checkpoint
from gatito.play.config import PlayConfig
from gatito.play.server import HOST, PlayServer

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""What ends the page in order: the last comes where its terminal is closed."""


def play_checkpoint(checkpoint: str, config: PlayConfig) -> None:
    """Serve the page until SIGTERM or Ctrl-C, and save what was recorded and not saved.

    Raises `UserError` where the port is taken.
    """
    torch.set_num_threads(config.threads)
    model, processor = load_checkpoint(checkpoint)
    server = PlayServer(model, processor, config, checkpoint)

    def say(address: str) -> None:
        print(f"{address}\nCtrl-C ends it", flush=True)
        if not config.no_browser:  # a browser of text runs until it is left
            threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()

    async def run() -> None:
        loop = asyncio.get_running_loop()

        def stop(name: signal.Signals) -> None:
            server.stop()
            loop.remove_signal_handler(name)  # a second one does not wait

        for name in SIGNALS:
            loop.add_signal_handler(name, stop, name)
        await server.run(say)

    try:
        asyncio.run(run())
    except OSError as error:
        raise UserError(f"cannot listen on {HOST}:{config.port} ({error.strerror or error})") from None
    finally:
        for folder in server.demonstrations.save_rest():
            print(f"recorded and not saved yet, now in {folder}")
    print("stopped")
