"""What a run came to: ``report.json``, ``history.csv`` and one self-contained page."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from hwprune.errors import ArtifactError
from hwprune.files import replacing, sha256_of, write_json, write_text
from hwprune.measured_on import measured_columns
from hwprune.output_folder import HISTORY_FILE, MODEL_FILE, PAGE_FILE, REPORT_FILE, SINGLE_FILE
from hwprune.result import Result
from hwprune.run_page import CURVES, render_run

_MAKE_IT_AGAIN = "make it again with the command that wrote it"


@dataclass(frozen=True, slots=True, eq=False)
class RunReport:
    """Everything known about one run.

    Attributes:
        settings: What was asked.
        seconds: Wall-clock time of the whole run.
        versions: Package versions.
        environment: Machine, runtime, precision and threads of the measurement.
        networks: ``dense`` and ``slim``: accuracy, latency_us, params, macs and file_bytes.
        result: The compression.
        runtime_gap: Slim in the runtime against masked in PyTorch.
        history: One row per epoch.
        image_shape: Channels, height and width of an image.
        preprocessing: What makes images of pixels, as JSON; ``None`` where that is not known.
        classes: Number of classes.
        class_names: In the order of the scores; none where they are not known.
        files: Name of every model in the folder to the SHA-256 of its file.
    """

    settings: Mapping[str, Any]
    seconds: float
    versions: Mapping[str, str]
    environment: Mapping[str, Any]
    networks: Mapping[str, Mapping[str, Any]]
    result: Result
    runtime_gap: float
    history: Sequence[Mapping[str, Any]]
    image_shape: tuple[int, int, int]
    preprocessing: Mapping[str, Any] | None = None
    classes: int | None = None
    class_names: Sequence[str] = ()
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def speedup(self) -> float:
        """Measured dense median over slim median, timed alternately."""
        return float(self.networks["dense"]["latency_us"]["median"]) / float(
            self.networks["slim"]["latency_us"]["median"]
        )

    @property
    def target_met(self) -> bool:
        """Whether the measured network (or the number of groups) is within the target."""
        kind, value = self.settings["target"]["kind"], self.settings["target"]["value"]
        groups = self.result.report.groups
        match kind:
            case "speedup":
                return bool(self.speedup >= value)
            case "latency_us":
                return bool(self.networks["slim"]["latency_us"]["median"] <= value)
            case _:
                return bool(groups["kept"] <= groups["budget"])

    @property
    def _went_further(self) -> bool:
        """Whether it started from a pruned network, and was trained as such."""
        return self.settings["follows"] is not None and self.settings["further"] is not None

    def as_record(self) -> dict[str, Any]:
        """The contents of ``report.json``."""
        report = self.result.report
        recipe = self.settings["recipe"]
        return {
            **{
                key: self.settings[key]
                for key in ("model", "data", "device", "target", "granularity", "penalty")
            },
            **{key: self.settings[key] for key in ("distillation", "reconstruct")},
            "train_images": self.settings["train_images"],
            "image_shape": list(self.image_shape),
            "preprocessing": self.preprocessing,
            "classes": self.classes,
            "class_names": list(self.class_names),
            "seed": recipe["seed"],
            "epochs": recipe["epochs"],
            "recipe": recipe,
            **{key: self.settings[key] for key in ("weights", "follows", "profiles")},
            "fine_tune": self.settings["further" if self._went_further else "fine_tune"],
            "fine_tune_before": self.settings["fine_tune"] if self._went_further else None,
            "seconds": round(self.seconds, 2),
            "versions": dict(self.versions),
            "environment": dict(self.environment),
            "dense": dict(self.networks["dense"]),
            "slim": dict(self.networks["slim"]),
            "speedup": round(self.speedup, 4),
            "target_met": self.target_met,
            "predicted_us": report.predicted_us,  # null where an operator has no price
            "prediction_error": {
                name: None if us is None else us / self.networks[name]["latency_us"]["median"] - 1
                for name, us in report.predicted_us.items()
            },
            "correction": None if report.correction is None else report.correction.as_record(),
            "groups": report.groups,
            "layers": self.result.plan.as_records(),
            "turns": [asdict(turn) for turn in report.turns],
            "max_abs_difference": {"torch": report.max_abs_difference, "runtime": self.runtime_gap},
            "files": dict(self.files),
        }


@dataclass(frozen=True, slots=True, eq=False)
class RunFolder:
    """A finished run, read back.

    Attributes:
        path: Its folder.
        record: The contents of ``report.json``.
        history: The rows of ``history.csv``.
    """

    path: Path
    record: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]]

    @classmethod
    def read(cls, path: Path) -> RunFolder:
        """Reads the folder of a finished run.

        Raises:
            ArtifactError: If it is none, or damaged.
        """
        record = read_json(path / REPORT_FILE, "hwprune prune, finished")
        try:
            history = pd.read_csv(path / HISTORY_FILE)
        except (OSError, ValueError) as error:
            raise ArtifactError("the history cannot be read", where=path / HISTORY_FILE, got=error) from error
        missing = [name for name in ("phase", "epoch", *dict(CURVES)) if name not in history.columns]
        if missing:
            raise ArtifactError(
                "the history is not complete",
                where=path / HISTORY_FILE,
                expected=f"the columns {', '.join(missing)}",
                hint=_MAKE_IT_AGAIN,
            )
        rows = history.to_dict("records")
        return cls(path, record, [{str(key): value for key, value in row.items()} for row in rows])

    def networks(self) -> pd.DataFrame:
        """One row per network, dense and slim."""
        with told_where_damaged(self.path / REPORT_FILE):
            return pd.DataFrame(network_rows(self.record))

    def write_page(self) -> Path:
        """Writes ``report.html`` anew and returns its path."""
        path = self.path / PAGE_FILE
        with told_where_damaged(self.path / REPORT_FILE):
            content = render_run(self.record, self.history)
        write_text(path, content)
        return path


def network_rows(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Dense and slim of a run as flat rows, and the slim network on 8 bits where a variant has one."""
    shared = {
        **{key: record[key] for key in ("model", "data", "device")},
        "target": record["target"]["kind"],
        "value": record["target"]["value"],
    }
    networks: list[tuple[str, Mapping[str, Any], float | None, float]] = [
        ("dense", record["dense"], record["predicted_us"]["dense"], 1.0),
        ("slim", record["slim"], record["predicted_us"]["slim"], record["speedup"]),
    ]
    if "int8" in record:
        on_8_bits = {**record["slim"], **record["int8"]}
        speedup = round(_speedup_on_8_bits(record), 4)
        networks.append(("slim-int8", on_8_bits, None, speedup))
    return [
        {
            **shared,
            "network": name,
            "accuracy": network["accuracy"],
            **{f"latency_us_{key}": value for key, value in network["latency_us"].items()},
            "predicted_us": predicted,
            "speedup": speedup,
            **{key: network[key] for key in ("params", "macs", "file_bytes")},
            **measured_columns(record),
            **({"precision": "int8"} if name == "slim-int8" else {}),
        }
        for name, network, predicted, speedup in networks
    ]


def _speedup_on_8_bits(record: Mapping[str, Any]) -> float:
    """How many times faster than the dense network in single precision the slim one is on 8 bits."""
    int8 = record["int8"]
    if "dense" in int8:  # all four were timed alternately
        return float(int8["dense"]["latency_us_fp32"]["median"] / int8["latency_us"]["median"])
    return float(record["speedup"] * int8["speedup_over_slim"])  # of older versions: two runs


def read_json(path: Path, maker: str) -> dict[str, Any]:
    """Reads a JSON object that one of the commands wrote.

    Args:
        path: The file.
        maker: What writes it, for the message.

    Raises:
        ArtifactError: If it is missing or no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ArtifactError(
            "there is nothing to report", where=path, expected=f"a folder of {maker}", got=error.strerror
        ) from error
    except ValueError as error:
        raise ArtifactError("the file is not JSON", where=path, got=error) from error
    if not isinstance(content, dict):
        raise ArtifactError("the file holds no JSON object", where=path, got=type(content).__name__)
    return content


@contextmanager
def told_where_damaged(path: Path) -> Iterator[None]:
    """Tells a key that is missing, or a value of another form, as an error of the file that it was read from.

    Args:
        path: The file whose contents are used within the context.

    Raises:
        ArtifactError: If they are not what the file should hold.
    """
    try:
        yield
    except KeyError as error:
        raise ArtifactError(
            "the file is not complete", where=path, expected=f"the key {error}", hint=_MAKE_IT_AGAIN
        ) from error
    except (TypeError, ValueError, AttributeError, IndexError, ZeroDivisionError) as error:
        raise ArtifactError(
            "the file does not hold what it should", where=path, got=error, hint=_MAKE_IT_AGAIN
        ) from error


def single_precision_file(run: Path) -> Path:
    """The slim network of a finished run in single precision, whatever its device runs.

    Raises:
        ArtifactError: If there is no finished run, or the file is not as the run has left it.
    """
    for name in (SINGLE_FILE, MODEL_FILE):
        if (run / REPORT_FILE).is_file() and (run / name).is_file():
            _check_as_written(run, name)
            return run / name
    raise ArtifactError(
        "no finished run is here",
        where=run,
        expected=f"a folder of hwprune prune with {REPORT_FILE} and {MODEL_FILE}",
        hint="finish the run with: hwprune prune ... --resume",
    )


def _check_as_written(run: Path, name: str) -> None:
    """Raises where a model is not the one that the report is of; older reports do not tell."""
    record = read_json(run / REPORT_FILE, "hwprune prune, finished")
    with told_where_damaged(run / REPORT_FILE):
        wanted = record.get("files", {}).get(name)
    if wanted is not None and (found := sha256_of(run / name)) != wanted:
        raise ArtifactError(
            "the file is not the one that the run has written and verified",
            where=run / name,
            expected=f"SHA-256 {wanted}",
            got=found,
            hint="take it from a copy of the run, or make the run again",
        )


def write_report(folder: Path, report: RunReport) -> None:
    """Writes ``history.csv``, ``report.html`` and, last, ``report.json``, each atomically."""
    with replacing(folder / HISTORY_FILE) as temporary:
        pd.DataFrame(list(report.history)).to_csv(temporary, index=False)
    record = report.as_record()
    write_text(folder / PAGE_FILE, render_run(record, report.history))
    write_json(folder / REPORT_FILE, record)
