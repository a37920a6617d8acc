"""``make fleet-demo``: the whole mini pipeline through two workers in clones of their volatile, and the same here, compared.

With ``--keep`` the servers stay up until Ctrl-C, to look around in.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import yaml

from tests.support.fleet_stand import BUCKET, REPO, Stand

CONCEPTS = ["heart_mug", "rally_car", "star_robot"]
TOLERANCE = 1e-3  # of a score or a figure of a table: pictures of other batches differ in their last bits


def shorten(clone: Path) -> None:
    """Three concepts and four prompts, so that it takes minutes. Each concept learned alone, as a worker of one has to: together they would
    differ by what training makes of last bits."""
    params = yaml.safe_load((clone / "params.yaml").read_text())
    params["mini"]["fetch"] |= {"concepts": CONCEPTS}
    params["mini"]["sample"] |= {"prompts": 4}
    params["mini"].setdefault("runtime", {})["concepts_per_batch"] = 1
    (clone / "params.yaml").write_text(yaml.safe_dump(params, sort_keys=False))


def timed(says: str, stand: Stand, command: list[str], clone: str) -> float:
    """Run, print, return seconds."""
    started = time.monotonic()
    stand.run([sys.executable, *command], clone)
    seconds = time.monotonic() - started
    print(f"{seconds:6.1f} s  {says}", flush=True)
    return seconds


def compared(one: Path, two: Path) -> dict[str, float]:
    """The largest difference of any score, and of any figure of a table, between two runs. Seconds and memory are the machine's volatile.
    Raises AssertionError naming the file where it is more than float tolerance."""
    differences = {}
    scores = [pd.read_parquet(folder / "data" / "scores" / "scores.parquet") for folder in (one, two)]
    differences["scores"] = _largest(*scores, "scores.parquet")
    names = sorted(path.name for path in (one / "data" / "tables").glob("*.csv"))
    assert names == sorted(path.name for path in (two / "data" / "tables").glob("*.csv")) and "table1.csv" in names, (
        names
    )
    for name in names:
        differences[name.removesuffix(".csv")] = _largest(
            *(pd.read_csv(f / "data" / "tables" / name) for f in (one, two)), name
        )
    return differences


def _largest(here: pd.DataFrame, there: pd.DataFrame, name: str) -> float:
    volatile = [column for column in here if column.endswith(("_s", "_mib", "seconds"))]
    here, there = here.drop(columns=volatile), there.drop(columns=volatile)
    pd.testing.assert_frame_equal(here, there, check_exact=False, rtol=0, atol=TOLERANCE, obj=name)
    numbers = here.select_dtypes("float").columns
    return float((here[numbers] - there[numbers]).abs().max().max()) if len(numbers) else 0.0


def on_demand(stand: Stand, photos: Path) -> float:
    """One concept by the deployment ``personalize``: photos from S3, the residual into S3."""
    client = stand.s3.client()
    for photo in sorted(photos.iterdir()):
        client.upload_file(str(photo), BUCKET, f"photos/mug7/{photo.name}")
    given = {
        "photos": f"s3://{BUCKET}/photos/mug7",
        "to": f"s3://{BUCKET}/residuals",
        "name": "mug7",
        "macro_class": "mug",
        "profile": "mini",
    }
    command = ["-m", "prefect", "deployment", "run", "persres-personalize/personalize", "--watch"]
    for key, value in given.items():
        command += ["-p", f"{key}={value}"]
    seconds = timed("one concept on demand, on a worker", stand, command, "scheduler")
    keys = {entry["Key"] for entry in client.list_objects_v2(Bucket=BUCKET, Prefix="residuals/mug7/")["Contents"]}
    assert {"residuals/mug7/mug7.safetensors", "residuals/mug7/README.md", "residuals/mug7/mug7.png"} <= keys, keys
    return seconds


def demo(root: Path, keep: bool) -> None:
    """Prints what it does, and keeps the figures in data/faults/demo.json."""
    with Stand(root) as stand:
        print(f"Prefect    {stand.url}\nS3         {stand.s3.endpoint}, bucket {BUCKET}\nfolders    {root}", flush=True)
        shorten(root / "scheduler")
        shutil.copytree(
            root / "scheduler", stand.clone("here"), dirs_exist_ok=True, ignore=shutil.ignore_patterns(".git")
        )
        store = f"s3://{BUCKET}/units"
        fleet = ["-m", "flows.fleet", "--store", store, "--shards", "4"]
        for command in (
            ["add", "-d", "store", f"s3://{BUCKET}/dvc"],
            ["modify", "store", "endpointurl", stand.s3.endpoint],
        ):
            stand.run([sys.executable, "-m", "dvc", "remote", *command], "scheduler")
        first = timed(
            "through the fleet: two workers; recorded and pushed by DVC",
            stand,
            [*fleet, "--commit", "--push"],
            "scheduler",
        )
        pushed = stand.run([sys.executable, "-m", "dvc", "status", "--cloud"], "scheduler")
        assert "in sync" in pushed, pushed
        worker = ["-m", "prefect", "worker", "start", "--pool", "persres-scheduler", "--type", "process"]
        stand.spawn("nightly", [sys.executable, *worker], "scheduler")
        nightly = ["-m", "prefect", "deployment", "run", "persres-fleet/nightly", "--watch", "-p", f"store={store}"]
        again = timed(
            "again, by the deployment nightly: every unit is there, none is sent", stand, nightly, "scheduler"
        )
        alone = timed("the same flow without a store, here alone", stand, ["-m", "flows.fleet"], "here")
        personalized = on_demand(stand, root / "scheduler" / "data" / "concepts" / "heart_mug" / "images")
        differences = compared(root / "scheduler", root / "here")
        for name, difference in differences.items():
            print(f"{difference:.2g}  largest difference between the two: {name}", flush=True)
        figures = {
            "fleet_s": first,
            "again_s": again,
            "alone_s": alone,
            "personalize_s": personalized,
            **{f"largest_difference_{name}": difference for name, difference in differences.items()},
        }
        write(figures)
        if keep:
            print("Ctrl-C ends it", flush=True)
            try:
                while True:
                    time.sleep(1)
            except KeyboardInterrupt:
                pass


def write(figures: dict[str, float]) -> None:
    """Written next to the table of faults."""
    out = REPO / "data" / "faults"
    out.mkdir(parents=True, exist_ok=True)
    (out / "demo.json").write_text(
        json.dumps({name: round(value, 5) for name, value in figures.items()}, indent=1) + "\n"
    )


if __name__ == "__main__":
    folder = Path(tempfile.mkdtemp(prefix="persres-fleet-"))
    demo(folder, "--keep" in sys.argv)
    shutil.rmtree(folder)
