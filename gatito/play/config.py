"""How the page is served."""

from dataclasses import dataclass
from pathlib import Path

from gatito.data.publish import check_writable
from gatito.errors import UserError
from gatito.eval import TEMPERATURE
from gatito.eval.decoding import Decoding
from gatito.eval.simulators import LocalSimulators


@dataclass(frozen=True, kw_only=True)
class PlayConfig:
    """How the page is served."""

    task: str | None = None
    """Task that is shown first; by default the first of those that can be simulated here."""
    port: int = 0
    """Port of 127.0.0.1 to listen on; 0 takes any that is free."""
    no_browser: bool = False
    """Print the page's address and open no browser."""
    record: str = "demonstrations"
    """Folder that demonstrations are saved to, as Minari datasets `TASK/NAME`."""
    temperature: float = TEMPERATURE
    """Of the sampled actions; 0 takes the likeliest."""
    top_p: float = 1.0
    """Actions are sampled of the likeliest ids that make up this probability."""
    threads: int = 1
    """Threads that the model computes with on a CPU."""
    pages: int = 4
    """Pages open at a time."""
    limit_s: float = 60.0
    """Seconds that a simulator may take to begin an episode, for one timestep, or for an expert's episode."""
    max_message_bytes: int = 1 << 24
    """Longest message that is read; the longest are images and episodes."""

    def __post_init__(self) -> None:
        if not 0 <= self.port < 1 << 16:
            raise UserError(f"--port is {self.port}, allowed 0 (any free one) to 65535")
        if not 1 <= self.pages <= 64:
            raise UserError(f"--pages is {self.pages}, allowed 1 to 64")
        if self.threads < 1:
            raise UserError(f"--threads is {self.threads}, allowed 1 and more")
        if self.max_message_bytes < 1:
            raise UserError(f"--max-message-bytes is {self.max_message_bytes}, allowed above 0")
        if Path(self.record).is_file():
            raise UserError(f"--record {self.record} is a file; name a folder")
        check_writable(Path(self.record), "--record")
        Decoding(temperature=self.temperature, top_p=self.top_p)
        LocalSimulators(limit_s=self.limit_s)
