"""A contestant that needs no library: `python fake_contestant.py fast|slow|broken|mortal|absent`."""

import os
import sys
import time

import numpy as np
from worker import Built, Learned, serve


def offer():
    kind = sys.argv[1]
    if kind == "absent":
        raise ModuleNotFoundError("No module named 'absent'")
    print("a library that talks while it is imported")
    calls = {"number": 0}

    def step(x):
        calls["number"] += 1
        time.sleep({"slow": 0.02}.get(kind, 0.001))
        if kind == "mortal" and calls["number"] > 3:
            os._exit(3)

    def train(X, setting):
        if kind == "broken":
            raise ValueError("cannot be built\nfor a reason")
        return Learned(step, parameters=0)

    def hold(X, setting):
        held = []

        def call():
            held[:] = [np.ones(8 * 2**20, dtype=np.float32)]
            return 1

        return Built(call, X.nbytes)

    return {"train topk": train, "encode topk": hold}


if __name__ == "__main__":
    serve(offer, lambda number: None)
