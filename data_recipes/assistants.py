"""Models that recipes ask: a local one, an OpenAI-compatible endpoint, or a function of the user's.

Exactly one of `model`, `endpoint` and `function` is named. Answers are a function of the seed and the prompt's key, as far as the one
asked keeps to its seed (a local model and a function do). An endpoint that cannot be reached stops the run with one line, and the run goes
on where it was when the command is given again: a failure is never an answer. A prompt that an endpoint refuses while it takes others
(too long, a content filter) stops nothing: its row is rejected.
"""

from __future__ import annotations

import base64
import hashlib
import os
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from pydantic import Field, model_validator

from vlm_contextrl.chat_endpoint import Outcome, message_text, post_chat
from vlm_contextrl.config import ModelSettings, Record
from vlm_contextrl.data_recipes.fingerprints import folder_fingerprint
from vlm_contextrl.devices import check_device
from vlm_contextrl.errors import ConfigError, InputError, first_line
from vlm_contextrl.images import IMAGE_FORMATS
from vlm_contextrl.pairs import EncodedImage


class Prompt(NamedTuple):
    """key: settles the random numbers of its answers; two prompts with one key get the same."""

    key: str
    text: str
    images: tuple[EncodedImage, ...] = ()


class Refusal(NamedTuple):
    """In place of answers: the endpoint does not take this prompt."""

    why: str


Answers = list[str] | Refusal


class Assistant(Protocol):
    """What answers prompts. Picklable; loads what it needs when it is first asked."""

    @property
    def revision(self) -> str | None:
        """What exactly answers: a commit of the hub, or a fingerprint of a folder or a function's file. None: an endpoint does not say."""

    def ask(self, prompts: Sequence[Prompt], n: int = 1) -> Sequence[Answers]:
        """n answers to each prompt."""


class AssistantSettings(Record):
    """Who is asked, and how. How an endpoint is reached settles no answer and is left out of dumps: a run that an endpoint stopped goes on
    with more patience."""

    model: ModelSettings | None = Field(None, description="a local model, e.g. assistant.model.path=FOLDER")
    endpoint: str | None = Field(
        None, description="base URL of an OpenAI-compatible server, e.g. http://localhost:8000/v1"
    )
    endpoint_model: str = Field("", description="name of the model at the endpoint")
    api_key_variable: str = Field(
        "OPENAI_API_KEY",
        description="environment variable that holds the endpoint's key, if it wants one",
        exclude=True,
    )
    function: str | None = Field(
        None, description="`package.module:name`, called with (text, images as PIL, seed), returns the answer"
    )
    device: str = Field("cpu", description="device of a local model")
    max_new_tokens: int = Field(512, ge=1, description="length limit of an answer")
    temperature: float = Field(
        0.0, ge=0, description="0 is greedy; more than one sample per prompt needs more"
    )
    seed: int = Field(0, ge=0, description="of sampled answers")
    timeout_s: float = Field(120.0, gt=0, description="patience with an endpoint, per request", exclude=True)
    retries: int = Field(
        3, ge=0, description="further tries when an endpoint fails, with growing pauses", exclude=True
    )
    requests_at_once: int = Field(
        8, ge=1, description="requests that wait at an endpoint at the same time, per worker", exclude=True
    )

    @model_validator(mode="after")
    def _one_named(self) -> AssistantSettings:
        named = [name for name in ("model", "endpoint", "function") if getattr(self, name) is not None]
        if len(named) != 1:
            found = " and ".join(named) or "none"
            raise ValueError(f"names {found}; expected exactly one of model, endpoint and function")
        if self.endpoint and not self.endpoint_model:
            raise ValueError("endpoint_model is empty; name the model at the endpoint")
        if self.endpoint and not self.endpoint.startswith(("http://", "https://")):
            raise ValueError(
                f"endpoint is {self.endpoint!r}, expected a URL such as http://localhost:8000/v1"
            )
        if self.endpoint and "@" in self.endpoint.partition("://")[2].partition("/")[0]:
            raise ValueError(
                "endpoint holds a user name or password, which would stand in every row; give a key by api_key_variable"
            )
        return self

    def check_samples(self, samples: int) -> None:
        """ValueError when several greedy answers are asked for."""
        if samples > 1 and self.temperature == 0 and self.function is None:
            raise ValueError(
                f"samples is {samples} and assistant.temperature 0, so all would be the same; raise the temperature, or set samples to 1"
            )

    @property
    def content(self) -> str:
        """A hash of what answers, as far as it lies here: the file of a function; names, sizes and times of the files of a model. Work that
        another one began is not gone on with."""
        digest = hashlib.sha256()
        if self.function:
            digest.update(_source(self.function))
        for name in (self.model.path, self.model.adapter) if self.model else ():
            for file in sorted(Path(name).rglob("*")) if name and Path(name).is_dir() else ():
                status = file.stat()
                digest.update(f"{file}:{status.st_size}:{status.st_mtime_ns}\n".encode())
        return digest.hexdigest()[:16]

    @property
    def name(self) -> str:
        """Who answered, for provenance."""
        if self.model:
            return self.model.path + (f" with {self.model.adapter}" if self.model.adapter else "")
        return self.function or f"{self.endpoint_model} at {self.endpoint}"


def assistant(settings: AssistantSettings) -> Assistant:
    """The assistant that settings name."""
    if settings.model:
        return LocalAssistant(settings)
    return EndpointAssistant(settings) if settings.endpoint else FunctionAssistant(settings)


def seed_of(settings: AssistantSettings, key: str, sample: int = 0) -> int:
    """The seed of one answer."""
    return random.Random(f"{settings.seed}:{key}:{sample}").getrandbits(62)


@dataclass
class LocalAssistant:
    """A vision-language model through our own decoding."""

    settings: AssistantSettings

    def __getstate__(self) -> dict[str, Any]:
        return {"settings": self.settings}

    @cached_property
    def policy(self) -> Any:
        """Loaded when first asked, in the worker."""
        from vlm_contextrl.models import load_policy

        assert self.settings.model is not None
        check_device(self.settings.device, f"device of {self.settings.model.path}")
        return load_policy(self.settings.model, self.settings.device, trainable=False).eval()

    @cached_property
    def revision(self) -> str | None:
        """As in `Assistant`; the model is loaded for the commit of a hub id."""
        from vlm_contextrl.models import resolve

        model = self.settings.model
        assert model is not None
        folders = [Path(resolve(name)) for name in (model.path, model.adapter) if name]
        if all(folder.is_dir() for folder in folders):
            return folder_fingerprint(*folders)
        commit = getattr(self.policy.model.config, "_commit_hash", None) or model.revision
        own = f" with {folder_fingerprint(folders[1])}" if model.adapter and folders[1].is_dir() else ""
        return f"{commit}{own}" if commit else None

    def ask(self, prompts: Sequence[Prompt], n: int = 1) -> list[Answers]:
        """n answers to each prompt."""
        from vlm_contextrl.models import autocast
        from vlm_contextrl.prompts import vqa_messages
        from vlm_contextrl.rollout import OwnEngine

        assert self.settings.model is not None
        processor = self.policy.processor
        encoded = []
        for prompt in prompts:
            images = [
                processor.process_image(image, f"{prompt.key}, image {i}")
                for i, image in enumerate(prompt.images)
            ]
            encoded.append(processor.encode(vqa_messages(prompt.text, len(images), style="plain"), images))
        with autocast(self.settings.model, self.policy.device):
            groups = OwnEngine(prompt_tokens=16384, sequences=64).sample(
                self.policy,
                encoded,
                n,
                max_new_tokens=self.settings.max_new_tokens,
                temperature=self.settings.temperature,
                seeds=[seed_of(self.settings, prompt.key) for prompt in prompts],
            )
        return [[processor.decode(c.ids.tolist()) for c in group] for group in groups]


@dataclass
class FunctionAssistant:
    """A Python function, e.g. a script of fixed answers."""

    settings: AssistantSettings

    @cached_property
    def revision(self) -> str | None:
        """Of the file that the function comes from."""
        source = _source(self.settings.function or "")
        return f"source-{hashlib.sha256(source).hexdigest()[:16]}" if source else None

    def ask(self, prompts: Sequence[Prompt], n: int = 1) -> list[Answers]:
        """n answers to each prompt."""
        function = _function(self.settings.function or "")
        answers: list[Answers] = []
        for prompt in prompts:
            images = [image.decode(f"{prompt.key}, image {i}") for i, image in enumerate(prompt.images)]
            answers.append([self._answer(function, prompt, images, i) for i in range(n)])
        return answers

    def _answer(self, function: Callable[..., object], prompt: Prompt, images: list[Any], sample: int) -> str:
        where = f"function {self.settings.function!r}, prompt {prompt.key}"
        try:
            answer = function(prompt.text, images, seed_of(self.settings, prompt.key, sample))
        except Exception as error:  # whatever a user's function raises, the message must say at which prompt
            raise InputError(f"{where}: {type(error).__name__}: {first_line(error)}") from error
        if not isinstance(answer, str):
            raise InputError(f"{where}: returned {answer!r:.80}, expected a text")
        return answer


def _source(name: str) -> bytes:
    """The file that a function comes from; nothing when it comes from none."""
    try:
        spec = find_spec(name.partition(":")[0])
        return Path(spec.origin).read_bytes() if spec and spec.origin else b""
    except (ImportError, AttributeError, ValueError, OSError):  # told when it is asked
        return b""


def _function(name: str) -> Callable[..., object]:
    module, _, attribute = name.partition(":")
    try:
        function: Callable[..., object] = getattr(import_module(module), attribute)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"function {name!r}: {first_line(error)}; expected package.module:name, importable (PYTHONPATH=FOLDER)"
        ) from error
    if not callable(function):
        raise ConfigError(f"function {name!r}: is a {type(function).__name__}, expected a function")
    return function


@dataclass
class EndpointAssistant:
    """An OpenAI-compatible server; vLLM and others speak its protocol."""

    settings: AssistantSettings
    has_answered: bool = field(default=False, init=False)  # in this process
    revision: str | None = field(default=None, init=False)

    def ask(self, prompts: Sequence[Prompt], n: int = 1) -> list[Answers]:
        """n answers to each prompt, each a request of its own: not every server samples several at once."""
        import httpx

        key = os.environ.get(self.settings.api_key_variable, "").strip()
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        asked = [(prompt, sample) for prompt in prompts for sample in range(n)]
        with (
            httpx.Client(headers=headers, timeout=self.settings.timeout_s) as client,
            ThreadPoolExecutor(self.settings.requests_at_once) as threads,
        ):
            answers = list(threads.map(lambda one: self._answer(client, *one), asked))
        return [_together(answers[at : at + n]) for at in range(0, len(answers), n)]

    def _answer(self, client: Any, prompt: Prompt, sample: int) -> str | Refusal:
        outcome = self._post(client, prompt, sample)
        if outcome.response is not None:
            self.has_answered = True
            return _content(outcome.response, self._url)
        if outcome.may_be_the_prompt and (self.has_answered or self._takes_another(client)):
            return Refusal(outcome.problem)
        raise InputError(
            f"{self._url}: {outcome.problem} (prompt {prompt.key}); mend the endpoint and give the command again to go on"
        )

    def _takes_another(self, client: Any) -> bool:
        """Whether the endpoint answers a prompt that nothing is wrong with, so that it was the prompt and not the request's form."""
        easy = Prompt("easy", "Answer with the word yes.")
        self.has_answered = self._post(client, easy, 0).response is not None
        return self.has_answered

    def _post(self, client: Any, prompt: Prompt, sample: int) -> Outcome:
        """What came of the last try."""
        import httpx

        settings = self.settings
        content = [{"type": "image_url", "image_url": {"url": _data_url(image)}} for image in prompt.images]
        request = {
            "model": settings.endpoint_model,
            "messages": [{"role": "user", "content": [*content, {"type": "text", "text": prompt.text}]}],
            "max_tokens": settings.max_new_tokens,
            "temperature": settings.temperature,
            "seed": seed_of(settings, prompt.key, sample) % 2**31,
        }
        outcome = Outcome()
        for attempt in range(settings.retries + 1):
            if attempt:
                time.sleep(min(2.0 ** (attempt - 1), 30.0))
            try:
                outcome = post_chat(client, settings.endpoint or "", request, settings.timeout_s)
            except httpx.InvalidURL as error:
                raise ConfigError(
                    f"endpoint {settings.endpoint!r}: {first_line(error)}; expected a URL"
                ) from error
            if outcome.response is not None or not outcome.may_help_again:
                break
        return outcome

    @property
    def _url(self) -> str:
        return f"{(self.settings.endpoint or '').rstrip('/')}/chat/completions"


def _together(answers: Sequence[str | Refusal]) -> Answers:
    """The samples of one prompt, or the first refusal of them."""
    said = [answer for answer in answers if isinstance(answer, str)]
    return next((answer for answer in answers if isinstance(answer, Refusal)), said)


def _content(response: Any, url: str) -> str:
    content = message_text(response)
    if content is None:
        found = " ".join(response.text.split())[:120]
        raise InputError(
            f"{url}: answered {found!r}, expected choices[0].message.content; is it OpenAI-compatible?"
        )
    return content


def _data_url(image: EncodedImage) -> str:
    signatures = {b"\x89PNG": "png", b"\xff\xd8": "jpeg", b"RIFF": "webp", b"GIF8": "gif", b"BM": "bmp"}
    assert len(signatures) == len(IMAGE_FORMATS)
    kind = next(kind for signature, kind in signatures.items() if image.data.startswith(signature))
    return f"data:image/{kind};base64,{base64.b64encode(image.data).decode()}"
