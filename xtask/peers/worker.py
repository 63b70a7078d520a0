"""A peer's side of `cargo xtask peers`: the lines of benches/peers/main.rs, answered in Python."""

import gc
import json
import os
import resource
import sys
import time
import warnings

# The lines go out here; whatever else prints goes to standard error.
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
warnings.simplefilter("ignore")


def field(name):
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith(name))
    return int(line.split()[1]) * 1024


class Worker:
    def __init__(self):
        self.method = None
        self.before = 0

    def setup(self, workload, method, dtype, file, memory_bytes=None, **_):
        # A peer that wants more fails by itself instead of taking the machine with it.
        if memory_bytes:
            resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
        import torch

        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
        from methods import METHODS
        from models import Task

        self.method = METHODS[method](Task(workload, dtype, file))
        gc.collect()
        with open("/proc/self/clear_refs", "w") as peak:
            peak.write("5")
        self.before = field("VmRSS")
        return {}

    def run(self):
        gc.collect()
        wall, cpu = time.perf_counter(), time.process_time()
        loss = self.method.run()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        return {"wall_ms": wall * 1e3, "cpu_ms": cpu * 1e3, "loss": loss.item()}

    def norms(self):
        scale = 1.0 if self.method.__class__.__name__ == "Truth" else self.method.task.scale
        return {"sq_norm": (self.method.norms().double() * scale**2).tolist()}

    def train(self, steps):
        return {"losses": self.method.task.train(steps)}

    def memory(self):
        return {"before_bytes": self.before, "peak_bytes": field("VmHWM")}


def message(mistake):
    """What it says, with the place it came from where it says nothing."""
    text = " ".join(str(mistake).split())
    if not text and mistake.__traceback__:
        at = mistake.__traceback__
        while at.tb_next:
            at = at.tb_next
        text = f"{os.path.basename(at.tb_frame.f_code.co_filename)}:{at.tb_lineno}"
    return f"{type(mistake).__name__}: {text}"


def main():
    worker = Worker()
    for line in sys.stdin:
        request = json.loads(line)
        do = request.pop("do")
        try:
            answer = getattr(worker, do)(**request)
        except Exception as mistake:
            answer = {"error": message(mistake)}
        print(json.dumps(answer), file=answers, flush=True)


main()
