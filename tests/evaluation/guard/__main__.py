"""`python -m tests.evaluation.guard [rounds] [seed]`: recall and precision of the detectors on invented texts."""

import sys

from tests.evaluation.guard.samples import samples
from tests.evaluation.guard.score import score

rounds, seed = (int(word) for word in (*sys.argv[1:], "20", "1")[:2]) if len(sys.argv) < 3 else map(int, sys.argv[1:3])
scores, notes = score(samples(seed, rounds))
for note in notes[:60]:
    print(note)
print(f"{'kind':18} {'there':>6} {'recall':>7} {'precision':>10}")
for s in scores:
    print(f"{s.kind:18} {s.found + s.missed:6} {s.recall:7.3f} {s.precision:10.3f}")
