"""`report` in one process and in two, one thread each: seconds of the measuring and of all but the drawing, and tables.

all-MiniLM-L6-v2 (extra `demo`) against itself with noise on its weights, on the embedded clauses. The first process
alone tests and answers, so the whole gains less than the measuring; the longer the run, the nearer the two. Beside
them: what two processes of nothing but plain passes gain here, which is 2 only where the machine has two whole cores.
Usage: python tests/bench/bench_processes.py [--limit 640] [--repetitions 1]
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch

from attnlens.checkpoints.load import load
from attnlens.checkpoints.packaged import encoder
from attnlens.text.embedded import embedded

WORKER = """
import json, sys, time
begun = time.perf_counter()
from pathlib import Path
from attnlens.analysis.parts import Parts
from attnlens.show import run
from attnlens.training.processes import first

spent, share = [], Parts.share

def timed(self, progress):
    start = time.perf_counter()
    share(self, progress)
    spent.append(time.perf_counter() - start)

Parts.share = timed
run.report = lambda comparison, directory: (Path(directory) / "report.html").write_text("")
base, tuned, data, limit, output = sys.argv[1:]
run.run_report([base, tuned], run.ReportOptions(data=data, limit=int(limit), output=output))
if first():
    print(json.dumps({"measuring": spent[0], "whole": time.perf_counter() - begun}))
"""

PLAIN = """
import sys, time
import torch
from attnlens.checkpoints.load import load

model = load(sys.argv[1]).model
ids = torch.randint(1000, 20000, (16, 128), generator=torch.Generator().manual_seed(0))
with torch.inference_mode():
    model(ids)
    begun = time.perf_counter()
    for _ in range(40):
        model(ids)
print(time.perf_counter() - begun)
"""
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def ceiling() -> float:
    """How many plain passes two processes at once make in the time in which one alone makes one."""
    command, spent = [sys.executable, "-c", PLAIN, encoder()], {}
    for count in (1, 2):
        running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT) for _ in range(count)]
        said = [process.communicate()[0] for process in running]
        assert not any(process.returncode for process in running)
        spent[count] = max(map(float, said))
    return 2 * spent[1] / spent[2]


def seconds(processes: int, words: list[str]) -> dict[str, float]:
    """Of one run."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    with tempfile.NamedTemporaryFile("w", suffix=".py") as script:
        script.write(WORKER)
        script.flush()
        command = [sys.executable, *(launcher if processes > 1 else []), script.name, *words]
        done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """A line for each number of processes, the ratios, then one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=640)
    parser.add_argument("--repetitions", type=int, default=1)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = load(encoder())
        torch.manual_seed(0)
        with torch.no_grad():
            for parameter in base.model.parameters():
                parameter.add_(0.1 * parameter.std(unbiased=False) * torch.randn_like(parameter))
        base.model.save_pretrained(folder / "tuned")
        base.tokenizer.save_pretrained(folder / "tuned")
        best: dict[int, dict[str, float]] = {}
        for repetition in range(arguments.repetitions):
            for processes in (1, 2):
                output = folder / f"{processes}-{repetition}"
                words = [encoder(), folder / "tuned", embedded("contracts_train"), arguments.limit, output]
                found = seconds(processes, [str(word) for word in words])
                earlier = best.get(processes, found)
                best[processes] = {part: min(found[part], earlier[part]) for part in found}
                print(f"{processes} processes: " + ", ".join(f"{part} {time_:.1f} s" for part, time_ in found.items()))
        tables = ("tests.csv", "weights.csv", "heads.csv")
        same = all((folder / "1-0" / table).read_bytes() == (folder / "2-0" / table).read_bytes() for table in tables)
    ratios = {part: best[1][part] / best[2][part] for part in best[1]}
    most = max(ceiling() for _ in range(arguments.repetitions))
    found = ratios | {"plain passes alone": most}
    print("two processes are faster by " + ", ".join(f"{ratio:.2f} ({part})" for part, ratio in found.items()))
    print(f"tables: {'the same bytes' if same else 'NOT the same'}, load {os.getloadavg()[0]:.2f}")
    print(json.dumps({"seconds": best, "ratios": ratios, "same": same, "ceiling": most, "limit": arguments.limit}))


if __name__ == "__main__":
    main()
