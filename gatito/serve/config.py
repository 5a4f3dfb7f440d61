"""How a checkpoint is served."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from gatito.errors import UserError
from gatito.eval import TEMPERATURE
from gatito.eval.decoding import Decoding

Late = Literal["repeat", "hold"]
"""What is answered where an action is not decided in time.

`repeat`  the last action again.
`hold`    continuous values 0, or the bound nearest to it; discrete ones as in the last action. For actions that are
          velocities or differences this stands still, where `repeat` goes on.
"""
LOCAL = ("127.0.0.1", "localhost", "::1")
TOKEN = "GATITO_TOKEN"
"""Environment variable that may hold the token."""


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """How a checkpoint is served."""

    task: str | None = None
    """Task of sessions that name none; by default the only one that the checkpoint knows."""
    host: str = "127.0.0.1"
    """Address to listen on; another than this machine's own needs a token."""
    port: int = 8000
    """Port to listen on; 0 takes any that is free."""
    token_file: str | None = None
    """File of the token that clients give as `Authorization: Api-Key TOKEN`; else GATITO_TOKEN, if set."""
    sessions: int = 16
    """Connections at a time."""
    temperature: float = TEMPERATURE
    """Of the sampled actions; 0 takes the likeliest."""
    top_p: float = 1.0
    """Actions are sampled of the likeliest ids that make up this probability."""
    threads: int = 1
    """Threads that the model computes with on a CPU; several wait for each other where cores are not free."""
    int8: bool = False
    """Compute the linear layers in int8 and keep keys and values in bfloat16 (on a CPU)."""
    hz: float | None = None
    """Answers a second that each session needs: one that is late is counted, and answered without the model."""
    late: Late = "repeat"
    """What is answered then: the last action again (`repeat`), or what holds still (`hold`)."""
    max_message_bytes: int = 1 << 24
    """Longest message that is read; the longest are demonstrations of images."""
    idle_s: float = 3600.0
    """Seconds after which a session that asks nothing is closed."""
    send_s: float = 10.0
    """Seconds that a client may take to read an answer."""

    def __post_init__(self) -> None:
        if not 1 <= self.sessions <= 1024:
            raise UserError(f"--sessions is {self.sessions}, allowed 1 to 1024")
        if self.threads < 1:
            raise UserError(f"--threads is {self.threads}, allowed 1 and more")
        if not 0 <= self.port < 1 << 16:
            raise UserError(f"--port is {self.port}, allowed 0 (any free one) to 65535")
        if self.hz is not None and not 0 < self.hz <= 1000:
            raise UserError(f"--hz is {self.hz:g}, allowed above 0 to 1000")
        if self.late not in get_args(Late):
            raise UserError(f"--late is {self.late!r}, allowed {' or '.join(get_args(Late))}")
        for name in ("max_message_bytes", "idle_s", "send_s"):
            if getattr(self, name) <= 0:
                raise UserError(f"--{name.replace('_', '-')} is {getattr(self, name)}, allowed above 0")
        Decoding(temperature=self.temperature, top_p=self.top_p)

    def token(self) -> str | None:
        """What clients have to know, or None; raises `UserError` where the file has none, and for a host that others
        reach without one."""
        token = os.environ.get(TOKEN)
        if self.token_file is not None:
            try:
                token = Path(self.token_file).read_text().strip()
            except (OSError, UnicodeDecodeError) as error:
                raise UserError(f"--token-file {self.token_file}: cannot be read ({error})") from None
        if token is not None and not (token.isascii() and token.isprintable() and token and " " not in token):
            source = self.token_file or TOKEN
            raise UserError(f"the token of {source} is empty or has spaces; make one: openssl rand -hex 32")
        if token is None and self.host not in LOCAL:
            raise UserError(
                f"--host {self.host} is reached by others; set a token ({TOKEN} or --token-file), or serve 127.0.0.1 "
                "behind a proxy"
            )
        return token
