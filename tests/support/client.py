"""A service under load, for the fault suite: notes each acknowledged call in a file.

Arguments: one JSON object. At SIGTERM it ends in good order and writes a report beside the notes;
with `rude` it has no such handler.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import random
import signal
import sys
from pathlib import Path

from token_tracking import UsageTracker


class Client:
    def __init__(self, options: dict[str, object]) -> None:
        self.name = str(options["name"])
        self.tasks = int(str(options.get("tasks", 8)))
        self.calls = 0
        self.told_true = 0
        self.raised = 0
        self.options = options
        self.random = random.Random(self.name)
        self.folder = Path(str(options["notes"]))
        flags = os.O_CREAT | os.O_APPEND | os.O_WRONLY
        self.notes = os.open(self.folder / f"{self.name}.acknowledged", flags)
        self.old_calls = os.open(self.folder / f"{self.name}.fallback", flags)
        self.stopping = asyncio.Event()

    def old_implementation(self, conversation_id: str = "", **_: object) -> bool:
        os.write(self.old_calls, f"{conversation_id}\n".encode())
        return True

    async def work(self, tracker: UsageTracker) -> None:
        while not self.stopping.is_set():
            self.calls += 1
            name = f"{self.name}-{self.calls}"
            key = name if self.calls % 2 else None  # which another session may hold
            call = tracker.track_token_usage(
                f"t{self.calls % 3}", 7, conversation_id=name, idempotency_key=key
            )
            try:
                if self.random.random() < 0.1:
                    told = await asyncio.wait_for(call, self.random.random() * 0.004)
                else:
                    told = await call
            except TimeoutError:
                continue
            except Exception:
                self.raised += 1
                raise
            if told:
                self.told_true += 1
                os.write(self.notes, f"{name}\n".encode())
            if self.options.get("limit") and self.calls >= int(str(self.options["limit"])):
                return
            await asyncio.sleep(self.random.random() * 0.01)

    async def main(self) -> None:
        if not self.options.get("rude"):
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, self.stopping.set)
        tracker = UsageTracker(
            dsn=str(self.options["dsn"]),
            max_wait=float(str(self.options.get("max_wait", 0.5))),
            spool_dir=str(self.options["spool"]),
            spool_max_bytes=self.options.get("spool_max_bytes"),  # type: ignore[arg-type]
            fallback=self.old_implementation if self.options.get("fallback") else None,
        )
        async with tracker:
            (self.folder / f"{self.name}.started").touch()
            await asyncio.gather(*(self.work(tracker) for _ in range(self.tasks)))
        stats = dataclasses.asdict(tracker.stats())
        report = {"calls": self.calls, "told_true": self.told_true, "stats": stats}
        (self.folder / f"{self.name}.report").write_text(json.dumps(report))


if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    asyncio.run(Client(given).main())
