"""Change without loss, in full: 20 reloads and 10 binary upgrades under clients in HTTP/1.1 and HTTP/2, new connections, a
WebSocket and a call of gRPC's manner, on both engines, with no failed request and no memory kept. The test of the
integration suite that does a few of each does all of them here, on the binary named by $RINGFORT."""

import os
import subprocess

from lib import BINARY, ENGINES, ROOT, Tally

TEST = "change::nobody_notices_reloads_and_upgrades"


def main():
    tally = Tally()
    for engine in ENGINES:
        done = subprocess.run(
            ["cargo", "test", "--locked", "--test", "it", "--", "--nocapture", "--exact", f"{TEST}::{engine}"],
            cwd=ROOT,
            env={**os.environ, "RINGFORT": BINARY, "RINGFORT_CHANGES": "20,10"},
            capture_output=True,
            text=True,
        )
        told = next((line for line in done.stdout.splitlines() if " reloads, " in line), "")
        ran = done.returncode == 0 and "1 passed" in done.stdout
        if ran and not told:
            tally.not_run(f"R1 R3 {engine}", "the engine does not run here")
            continue
        tally.check(f"R1 R3 {engine}: {told}", ran, (done.stdout + done.stderr)[-4_000:])
    tally.end()


if __name__ == "__main__":
    main()
