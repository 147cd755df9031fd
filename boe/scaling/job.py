"""A job of sharded generation: what is asked, and where its files are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol

import boe
from boe.denoisers.placement import check_compilation
from boe.evaluate.running import describe
from boe.files import prepare_directory, write_json
from boe.scaling.prompts import Deal, digest_of_file, read_prompts
from boe.text import TextOptions

SCHEMA = "boe/generation-job/1"


@dataclass(frozen=True)
class ModelSource:
    """Which model, and how it is loaded (:func:`boe.load_model`).

    Attributes:
        revision: of a Hub id: branch, tag or commit.
        dtype: a name of torch's, or "auto" for the checkpoint's own.
        device: "cpu", or "cuda" for the GPU that a replica is given.
        tensor_parallel: processes that the layers are shared out over, if more than one.
        compilation: of :data:`boe.denoisers.placement.COMPILATION`.
    """

    source: str
    revision: str | None = None
    dtype: str = "auto"
    device: str = "cpu"
    mask_id: int | None = None
    tokenizer: str | None = None
    allow_pickle: bool = False
    trust_remote_code: bool = False
    tensor_parallel: int = 1
    compilation: str = "none"

    def __post_init__(self) -> None:
        if ":" in self.device:
            raise ValueError(
                f"device must name no GPU, each replica is given its own, got {self.device!r}"
            )
        check_compilation(self.compilation)


@dataclass(frozen=True)
class GenerationJob:
    """Answers to all prompts of a file.

    Attributes:
        input: the prompt file, and its digest: with another content it is another job.
        shards: parts that are worked on and resumed one by one.
        length: masks appended to prompts that do not say; for them ``max_new_tokens``.
        options: how they are decoded, ``batch_size`` together.

    Raises:
        ValueError: a number outside its range.
    """

    model: ModelSource
    input: str
    input_digest: str
    options: TextOptions
    shards: int = 1
    length: int = 0

    def __post_init__(self) -> None:
        for name, least in (("shards", 1), ("length", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")

    @classmethod
    def of(
        cls, model: ModelSource, prompts: Path, options: TextOptions, **sizes: int
    ) -> GenerationJob:
        """A job on a prompt file; ``sizes`` are ``shards`` and ``length``."""
        return cls(model, str(prompts.resolve()), digest_of_file(prompts), options, **sizes)

    def deal(self) -> Deal:
        """The prompts, in shards and batches.

        Raises:
            ValueError: the file's content is not what it was, or holds no prompts, or a
                conversation whose answer has no length.
        """
        path = Path(self.input)
        if digest_of_file(path) != self.input_digest:
            raise ValueError(f"{path} has changed since the job began; give a new output")
        prompts = [
            replace(prompt, length=self.length) if prompt.length is None else prompt
            for prompt in read_prompts(path)
        ]
        for prompt in prompts:
            if prompt.messages is not None and not prompt.length:
                raise ValueError(
                    f"{path}, line {prompt.line}: length: must be at least 1 for messages, whose "
                    "answer it is of; it is 0 here or in the job"
                )
        return Deal.of(prompts, self.options.batch_size, self.shards)

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that decides an answer, but for the prompt and the model's weights.

        The number of shards is not among it, nor where files are.
        """
        return {
            "boe": boe.__version__,
            "input": self.input_digest,
            "dtype": self.model.dtype,
            "device": self.model.device,
            "tensor_parallel": self.model.tensor_parallel,
            "compilation": self.model.compilation,
            "length": self.length,
            **asdict(self.options),
            "sampler": describe(self.options.sampler),
        }

    def as_json(self) -> dict[str, Any]:
        return {"schema": SCHEMA, "boe": boe.__version__, **asdict(self)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> GenerationJob:
        """The job that :meth:`as_json` wrote.

        Raises:
            ValueError: another schema.
        """
        if content.get("schema") != SCHEMA:
            raise ValueError(f"schema must be {SCHEMA}, got {content.get('schema')!r}")
        own = {field.name: content[field.name] for field in fields(cls)}
        own["model"] = ModelSource(**own["model"])
        listed = {
            name: tuple(value) for name, value in own["options"].items() if isinstance(value, list)
        }
        own["options"] = TextOptions(**{**own["options"], **listed})
        return cls(**own)


class Job(Protocol):
    """Work in shards that is begun in a folder."""

    @property
    def shards(self) -> int: ...

    def as_json(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class JobFolder:
    """The files of a job under one directory, which all of its hosts can reach."""

    path: Path

    @property
    def job(self) -> Path:
        return self.path / "job.json"

    @property
    def engine(self) -> Path:
        """datatrove's logs, statistics and completion markers."""
        return self.path / "engine"

    @property
    def workers(self) -> Path:
        """What local replicas printed."""
        return self.path / "workers"

    @property
    def answers(self) -> Path:
        return self.path / "answers.jsonl"

    @property
    def failures(self) -> Path:
        return self.path / "failures.jsonl"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    def progress(self, shard: int) -> Path:
        """Results in the order they came: what a shard is resumed from."""
        return self.path / "progress" / f"{shard:05d}.jsonl"

    def shard(self, shard: int) -> Path:
        """A finished shard: its answers and failures in the order of the input."""
        return self.path / "shards" / f"{shard:05d}.jsonl"

    def report(self, shard: int) -> Path:
        """What a finished shard was made with."""
        return self.path / "shards" / f"{shard:05d}.json"

    def marker(self, shard: int) -> Path:
        """datatrove's completion marker of a shard."""
        return self.engine / "completions" / f"{shard:05d}"

    @property
    def untouched(self) -> bool:
        """Whether nothing of the job has been stored yet."""
        folders = (self.progress(0).parent, self.shard(0).parent)
        return not any(path for folder in folders for path in folder.iterdir())

    def open(self, job: Job) -> bool:
        """Begin ``job`` here, or find it begun; whether it is begun now.

        Raises:
            ValueError: another job is here; the message names what differs.
            OSError: nothing can be written there.
        """
        prepare_directory(self.path)
        for folder in (self.progress(0).parent, self.shard(0).parent, self.workers):
            folder.mkdir(parents=True, exist_ok=True)
        new = json.loads(json.dumps(job.as_json()))
        if not self.job.exists():
            write_json(self.job, new)
            return True
        old = json.loads(self.job.read_text())
        differing = [name for name in _leaves(new) if _leaves(new)[name] != _leaves(old).get(name)]
        if differing:
            shown = "; ".join(
                f"{name} was {_leaves(old).get(name)!r}, now {_leaves(new)[name]!r}"
                for name in differing
            )
            raise ValueError(f"{self.path} holds another job: {shown}; give a new output")
        return False

    def content(self) -> dict[str, Any]:
        """The job here, of whatever kind, as its ``as_json`` gave it.

        Raises:
            FileNotFoundError: there is none.
        """
        if not self.job.is_file():
            raise FileNotFoundError(f"{self.path} holds no job: {self.job.name} is missing")
        content: dict[str, Any] = json.loads(self.job.read_text())
        return content

    def read(self) -> GenerationJob:
        """The job of generation here."""
        return GenerationJob.from_json(self.content())

    def unfinished(self, shards: int) -> list[int]:
        """The shards that lack datatrove's marker."""
        done = {path.name for path in self.marker(0).parent.glob("*")}
        return [shard for shard in range(shards) if self.marker(shard).name not in done]


def _leaves(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in content.items():
        if isinstance(value, dict):
            found.update(_leaves(value, f"{prefix}{name}."))
        else:
            found[prefix + name] = value
    return found
