"""Train: a decoder learns to caption pictures from their features; the epoch whose val captions are best is kept.

Reads:  data/P/captions_train.json, data/P/captions_val.json, data/P/vocab.json, data/P/features, data/P/pictures
Writes: models/P/captioner.safetensors, models/P/run.json, reports/P/training.csv
Why:    selection is by CIDEr of captions really decoded, which loss and teacher-forced scores do not follow.
"""

from __future__ import annotations

import csv
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch

from stages import params, rim
from stages.features.device import choose_device, choose_dtype, set_threads
from stages.features.device import describe as describe_device
from stages.features.launch import Ranks, launch
from stages.features.preprocessing import Preprocessing
from stages.features.store import Features
from stages.fetch.captions import read_captions
from stages.fetch.pictures import Pictures
from stages.files import fingerprint, whole, write_json
from stages.recorder import Recorder
from stages.scorers.score import Judge
from stages.train.artifact import Artifact, load_encoder
from stages.train.batches import Examples, Source
from stages.train.decoders import DECODERS, Decoder, Shape, build
from stages.train.decoding import Decoding
from stages.train.describe import describe
from stages.train.finetune import Tuned, keep
from stages.train.loop import Row, Training
from stages.train.memory import Memory
from stages.train.objectives import CrossEntropy, Objective, Reward, SelfCritical
from stages.train.settings import Plan, Settings
from stages.vocab.vocabulary import Vocabulary


def main() -> None:
    profile, settings = params.read("train")
    assert isinstance(settings, Settings)
    launch("train", profile, settings.launch.processes, settings.device, partial(train, profile, settings))


def train(profile: str, settings: Settings, ranks: Ranks) -> None:
    """All ranks learn together; rank 0 alone scores, writes and keeps the record."""
    data, models, reports = (Path(top) / profile for top in ("data", "models", "reports"))
    record = None if ranks.rank else Recorder()  # first of all: it loads MLflow beside what follows
    for left in () if ranks.rank else models.glob(".unfinished_*.partial"):
        left.unlink()  # of a process that was killed while it saved

    threads = set_threads(settings.threads)
    device = choose_device(settings.device)
    dtype = choose_dtype(settings.precision, device)
    vocabulary = Vocabulary.read(data / "vocab.json")
    features = Features(data / "features")
    pictures = {split: read_captions(data / f"captions_{split}.json") for split in ("train", "val")}
    examples = {split: Examples.of(pictures[split], features, split, vocabulary) for split in pictures}
    kind = DECODERS[settings.decoder]
    source = {
        "train": Source(features, "train", kind.grid, mirror=features.index["mirror"]),
        "val": Source(features, "val", kind.grid, mirror=False),
    }
    decoding = Decoding(**settings.decoding())
    # By which epochs are chosen: what is remembered is made at the end.
    plain = decoding.but(neighbours=0, candidates=0)
    encoder = {
        key: features.index[key] for key in ("encoder", "weights", "weights_sha256", "precision", "preprocessing")
    }
    # Now, so that what cannot be tuned is told before anything is trained; and before a random number is drawn.
    frozen, blocks = load_encoder(encoder, {}, device) if settings.finetune.epochs else None, settings.finetune.blocks
    upper = frozen.upper(blocks).cpu() if frozen else None
    torch.manual_seed(settings.seed)
    shape = Shape(
        settings.decoder,
        len(vocabulary.words),
        features.index["channels"],
        settings.embedding,
        settings.hidden,
        settings.dropout,
        settings.tied,
    )
    decoder = build(shape)
    decoder.standardise(torch.from_numpy(features.read("train", "pooled", examples["train"].rows)).float())
    fingerprinted = fingerprint(
        settings.model_dump(exclude={"checkpoint_minutes", "launch"}),
        {"device": device.type, "dtype": str(dtype)},
        *(data / name for name in ("vocab.json", "captions_train.json", "captions_val.json")),
        data / "features" / "index.json",
        *code(),
    )
    ranks.agree(fingerprinted)
    if ranks.rank > 0:
        ranks.seed(settings.seed)
    batches = {"captions": settings.batch, "captions_per_picture": settings.captions_per_picture}
    validation = CrossEntropy(examples["val"], source["val"], device, dtype, **batches)
    judged = pictures["val"][: settings.val_pictures]
    seen = features.rows("val")
    judged = [picture for picture in judged if picture.id in seen]
    judge = Judge({picture.id: picture.captions for picture in judged})

    def begin(decoder: Decoder, objective: Objective, plan: Plan, part: str) -> Training:
        return Training(
            decoder,
            objective,
            plan,
            device=device,
            compiled=settings.compile,
            checkpoint=models / f"unfinished_{part}.pt",
            fingerprint=fingerprinted,
            ranks=ranks,
            noted=lambda: {"run_id": record.id} if record else {},
            check=record.check if record else None,
        )

    def score(decoder: Decoder) -> tuple[Row, float]:
        rows = [seen[picture.id] for picture in judged]
        found = describe(
            [decoder], [source["val"]], rows, plain, bad_endings=vocabulary.bad_endings, batch=128, device=device
        )
        captions = {picture.id: vocabulary.decode(best[0].words) for picture, best in zip(judged, found, strict=True)}
        scores = judge.score(captions, with_meteor=False).metrics()
        row = {
            "val_loss": validation.mean_loss(decoder),
            "val_cider": scores["cider"] or 0.0,
            "val_bleu_4": scores["bleu_4"] or 0.0,
        }
        return {key: round(value, 6) for key, value in row.items()}, row["val_cider"]

    def words_of_people() -> CrossEntropy:
        learned: dict[str, Any] = {"label_smoothing": settings.label_smoothing, "own_words": settings.own_words}
        return CrossEntropy(examples["train"], source["train"], device, dtype, **batches, **learned)

    training = begin(decoder, words_of_people(), settings.plan(), "CrossEntropy")
    resumed = training.resume()
    if record:
        doing = describe_device(device, ranks.size)
        record.start(profile, params.recorded(), doing, training.notes.get("run_id"))
    with record or nullcontext():

        def log(row: Row, speed: float, kept: bool) -> None:
            if record is None:
                return
            record.log({**row, "captions_per_second": speed}, step=int(row["epoch"]))
            write_training(reports / "training.csv", training.rows)
            learned = f"loss {row['train_loss']:.3f}" if "train_loss" in row else f"reward {row['train_reward']:.3f}"
            print(
                f"epoch {row['epoch']:2}: {learned}, val loss {row['val_loss']:.3f}, CIDEr {row['val_cider']:.3f}, "
                f"BLEU-4 {row['val_bleu_4']:.3f}, {speed:,.0f} captions/s{' *' if kept else ''}",
                flush=True,
            )

        def go_on(resumed: bool) -> Decoder:
            if resumed and record:
                for row in training.rows:  # an epoch that was saved and not yet recorded when the run was killed
                    record.log(row, step=int(row["epoch"]))
                print(f"goes on after epoch {len(training.rows)}, step {training.progress.step}")
            return training.train(score, log)

        best = go_on(resumed)
        if frozen and upper:
            best = Tuned(best, upper, frozen.dtype, settings.finetune.encoder_share)
            archives = Pictures(data / "pictures")
            for split in source:
                known = features.rows(split)
                source[split] = keep(
                    lambda pixels: [frozen.lower(pixels, blocks)],
                    source[split],
                    archives,
                    [picture for picture in pictures[split] if picture.id in known],
                    Preprocessing(**encoder["preprocessing"]),
                    workers=threads,
                    device=device,
                )
            validation.source = source["val"]
            earlier, training = training, begin(best, words_of_people(), settings.finetune_plan(), "Finetune")
            training.follow(earlier)
            training.best = {name: part.cpu().clone() for name, part in best.state_dict().items()}
            best = go_on(training.resume())
        if settings.self_critical.epochs:
            own = settings.self_critical
            best.sharpen(own.sharpen)
            best.dropout.p = own.dropout
            trained = [picture for picture in pictures["train"] if picture.id in features.rows("train")]
            self_critical = SelfCritical(
                examples["train"],
                source["train"],
                device,
                dtype,
                Reward(trained, vocabulary),
                pictures=own.pictures,
                samples=own.samples,
                max_words=settings.max_words,
            )
            earlier, training = training, begin(best, self_critical, settings.self_critical_plan(), "SelfCritical")
            training.follow(earlier)
            best = go_on(training.resume())
        if record is None:
            return
        write_training(reports / "training.csv", training.rows)
        tuned = best.upper.state_dict() if isinstance(best, Tuned) else {}
        memory = remember(best, source["train"], examples["train"]) if settings.neighbours else None
        best = best.decoder if isinstance(best, Tuned) else best
        artifact = Artifact(best, vocabulary, encoder, decoding, tuned=tuned, memory=memory)
        artifact.save(models / "captioner.safetensors")
    # Its checkpoints stay until evaluate begins: killed before DVC has taken note of this stage, it is run again, and
    # then it must end as the same run.
    write_json(models / "run.json", record.record())


@torch.inference_mode()
def remember(decoder: Decoder, source: Source, examples: Examples) -> Memory:
    """The training pictures as the decoder's encoder sees them, and their captions."""
    parts = []
    for first in range(0, len(examples), 256):
        seen = source.read(examples.rows[first : first + 256])[0].float()
        parts.append(decoder.see(seen)[0] if isinstance(decoder, Tuned) else seen)
    return Memory.of(torch.cat(parts), examples.captions)


def code() -> list[Path]:
    """The files whose edit could change what is trained: a saved run must not go on under other rules. All that
    dvc.yaml names for this stage are among them, but for the trunk."""
    stages = Path(__file__).parent.parent
    learned_from = ("fetch/captions.py", "fetch/pictures.py", "features/*.py", "vocab/vocabulary.py")
    return sorted(path for some in (*learned_from, "scorers/*.py", "train/*.py") for path in stages.glob(some))


def write_training(path: Path, rows: list[Row]) -> None:
    """The curves, one epoch a row. Times are not in it: the same run writes the same bytes."""
    columns = dict.fromkeys(column for row in rows for column in row)
    with whole(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, columns, lineterminator="\n")
        table.writeheader()
        table.writerows(rows)


if __name__ == "__main__":
    rim.stage("train", __doc__, main)
