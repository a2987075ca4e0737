"""Every small recipe on one folder of real pictures: what it teaches an encoder, over seeds, at equal images seen.

    python benchmarks/methods.py --data PICTURES --out runs/methods --label label --where source=liver735

PICTURES holds manifest.csv. All of its pictures train; those that `--where` selects are labelled and measure: a linear
probe by patient of raw pixels, the untrained and the trained encoder. Finished runs are kept, so the script can be
called again. Prints a Markdown table: method, loss from its first to its last steps, feature rank and spread, macro F1
and AUC, mean and standard deviation over seeds.
"""

import argparse
import csv
import itertools
import os
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

RECIPES = ("urfm", "mae", "deblur_mim", "usfm", "simclr", "mocov3", "dino")
PROBED = ("raw pixels", "untrained", "trained", "teacher")


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--where", default="source=liver735")
    parser.add_argument("--label", default="label")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time, a thread each")
    parser.add_argument("--recipes", nargs="+", default=RECIPES)
    return parser.parse_args()


def labelled(data, where, out):
    """A manifest of the rows with which to measure."""
    column, value = where.split("=")
    with (data / "manifest.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row[column] == value]
    for row in rows:
        row["path"] = str((data / row["path"]).resolve())
    out.mkdir(parents=True, exist_ok=True)
    with (out / "labelled.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return out / "labelled.csv"


def fit(args, manifest, recipe, seed):
    folder = args.out / f"{recipe}-{seed}"
    if (folder / "encoder" / "config.json").exists():
        return
    command = [sys.executable, "-m", "ussl.cli", "fit", "--recipe", f"small/{recipe}", "--data", str(args.data)]
    command += ["--out", str(folder), "--overwrite", "--seed", str(seed), "--train.steps", str(args.steps)]
    command += ["--train.threads", "1", "--loader.workers", "0", "--loader.canvas", "256"]
    probe = f"{{name: linear, data: {manifest}, label: {args.label}, every: 1000}}"
    command += ["--probes.organ", "null", "--probes.spread", "null", "--probes.task", probe]
    with (args.out / f"{recipe}-{seed}.log").open("w") as log:
        code = subprocess.run(command, stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"}).returncode
    print(f"{recipe} seed {seed}: {'done' if code == 0 else f'failed, see its log (code {code})'}", flush=True)


def column(folder, name):
    with (folder / "metrics.csv").open(newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


def probes(folder):
    with (folder / "probes.csv").open(newline="") as file:
        return {(row["encoder"], row["measure"]): float(row["value"]) for row in csv.DictReader(file)}


def over(values):
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.3f} ± {spread:.3f}"


def table(args):
    print(f"\n{args.steps * 64:,} images seen a run, {args.seeds} seeds, macro F1 / AUC\n")
    print("| method | loss first -> last 20 steps | chance | rank | spread | untrained | trained | trained, by seed |")
    print("|---|---|---|---|---|---|---|---|")
    for recipe in args.recipes:
        folders = [args.out / f"{recipe}-{seed}" for seed in range(args.seeds)]
        folders = [folder for folder in folders if (folder / "encoder" / "config.json").exists()]
        if not folders:
            continue
        losses = [column(folder, "loss") for folder in folders]
        early, late = (
            statistics.mean(statistics.mean(x[part]) for x in losses) for part in (slice(20), slice(-20, None))
        )
        last = {
            name: [statistics.mean(x[-20:]) for folder in folders if (x := column(folder, name))]
            for name in ("chance", "feature_rank", "feature_spread")
        }
        chance = f"{statistics.mean(last['chance']):.3f}" if last["chance"] else "-"
        found = [probes(folder) for folder in folders]
        scores = {
            encoder: " / ".join(over([x[encoder, measure] for x in found]) for measure in ("macro_f1", "auc"))
            for encoder in ("untrained", "trained")
        }
        seeds = ", ".join(f"{x['trained', 'macro_f1']:.3f}" for x in found)
        rank, spread = (f"{statistics.mean(last[name]):.3g}" for name in ("feature_rank", "feature_spread"))
        print(
            f"| {recipe} | {early:.3f} -> {late:.3f} | {chance} | {rank} | {spread} | {scores['untrained']} | "
            f"{scores['trained']} | {seeds} |"
        )
    baseline = {encoder: found[0].get((encoder, "macro_f1")) for encoder in ("raw pixels", "teacher")}
    print(f"\nmacro F1 of raw pixels {baseline['raw pixels']:.3f}")


def main():
    args = arguments()
    manifest = labelled(args.data, args.where, args.out)
    with ThreadPoolExecutor(args.jobs) as pool:
        jobs = itertools.product(range(args.seeds), args.recipes)
        list(pool.map(lambda job: fit(args, manifest, job[1], job[0]), jobs))
    table(args)


if __name__ == "__main__":
    main()
