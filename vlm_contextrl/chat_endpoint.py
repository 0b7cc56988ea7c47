"""One request to `/chat/completions` of an OpenAI-compatible server (platform.openai.com/docs/api-reference/chat), and what came of it."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

from vlm_contextrl.errors import first_line


class Outcome(NamedTuple):
    """response: of status 200; else `problem` says in a few words what came instead, and whether asking again could help.

    may_be_the_prompt: the status is one that servers give for prompts that they do not take, too (length, content filters).
    """

    response: Any = None
    problem: str = ""
    may_help_again: bool = True
    may_be_the_prompt: bool = False


def post_chat(client: Any, base_url: str, request: dict[str, Any], timeout_s: float) -> Outcome:
    """Ask once. client: an httpx.Client with headers and timeout set. Raises httpx.InvalidURL.

    timeout_s: for the whole reply; httpx's own begins anew with every piece.
    """
    import httpx

    until_s = time.monotonic() + timeout_s
    try:
        with client.stream("POST", f"{base_url.rstrip('/')}/chat/completions", json=request) as response:
            body = bytearray()
            for piece in response.iter_raw():
                body += piece
                if time.monotonic() > until_s:
                    raise httpx.ReadTimeout("")
        response = httpx.Response(response.status_code, headers=response.headers, content=bytes(body))
    except httpx.TimeoutException:
        return Outcome(problem=f"no answer within {timeout_s:g} s")
    except httpx.HTTPError as error:
        return Outcome(problem=first_line(error))
    if response.status_code == 200:
        return Outcome(response)
    problem = f"status {response.status_code}: {' '.join(response.text.split())[:200]}"
    return Outcome(
        problem=problem,
        may_help_again=response.status_code >= 500 or response.status_code in (408, 429),
        may_be_the_prompt=response.status_code in (400, 413, 422),
    )


def message_text(response: Any) -> str | None:
    """The text of a reply, "" where the protocol says that there is none (thinking has used up max_tokens); None when the reply is not the
    protocol's."""
    try:
        content = response.json()["choices"][0]["message"]["content"]
    except (ValueError, LookupError, TypeError):
        return None
    return content if isinstance(content, str) else "" if content is None else None
