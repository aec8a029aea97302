"""How often `stmbench bench` tells a network from itself: the promise is once in 20 tries, at most.

python tests/benchmarks/bench_aa.py [TRIES] [A] [B] [IMAGE_SIZE]

With two names it is an A/B instead, and tells how often a difference is found.
"""

import sys
import time
from collections import Counter

from stmbench import bench


def main() -> None:
    given = dict(enumerate(sys.argv[1:]))
    tries, first = int(given.get(0, 20)), given.get(1, "dwconv")
    names = [first, given.get(2, first)]
    asked = bench.contenders(names, bench.Options(image_size=int(given.get(3, 224))))
    tally: Counter[str] = Counter()
    for i in range(tries):
        started = time.perf_counter()
        *_, result = bench.run(asked, 12)
        assert isinstance(result, bench.Result)
        row = result.rows[1]
        if row.ratio is None:
            sys.exit(f"{names}: {[each.reason for each in result.rows]}")
        verdict, found = row.ratio.verdict, row.ratio
        tally[verdict] += 1
        logs = " ".join(f"{value:+.3f}" for value in row.log_ratios)
        print(
            f"{i + 1:3}  {found.value:.3f} ({found.low:.3f} to {found.high:.3f})  {verdict:<12}  "
            f"{time.perf_counter() - started:4.0f} s, {result.set_aside} set aside, "
            f"others {result.others:.0%}  [{logs}]",
            flush=True,
        )
    print(f"{names[0]} against {names[1]}, {tries} tries: {dict(tally)}")


if __name__ == "__main__":
    main()
