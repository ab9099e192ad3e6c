"""Talk to a server in the terminal: ours, or any that speaks OpenAI's chat completions. Ctrl-D ends."""

import json
from collections.abc import Iterator
from pathlib import Path

import click
import httpx2

from distill.errors import DistillError, explained


@click.command(help=__doc__)
@click.option("--url", default="http://127.0.0.1:8000", show_default=True)
@click.option("--token-file", type=click.Path(path_type=Path), help="file with the server's token")
@click.option("--system", help="a system message to start with")
@click.option("--temperature", type=float, default=1.0, show_default=True)
@click.option("--max-tokens", type=int, help="longest answer; what the context has room for by default")
def main(url: str, token_file: Path | None, system: str | None, temperature: float, max_tokens: int | None) -> None:
    headers = {"Authorization": f"Bearer {token_file.read_text().strip()}"} if token_file else {}
    said = [{"role": "system", "content": system}] if system else []
    settings = {"temperature": temperature, "max_tokens": max_tokens, "stream": True}
    with explained(), httpx2.Client(base_url=url.removesuffix("/v1"), headers=headers, timeout=None) as client:
        while True:
            try:
                said.append({"role": "user", "content": click.prompt("you", prompt_suffix="> ")})
            except click.Abort:
                return click.echo()
            parts = []
            for part in answer(client, settings | {"messages": said}):
                parts.append(part)
                click.echo(part, nl=False)
            click.echo()
            said.append({"role": "assistant", "content": "".join(parts)})


def answer(client: httpx2.Client, body: dict) -> Iterator[str]:
    """The pieces of an answer as they come."""
    try:
        with client.stream("POST", "/v1/chat/completions", json=body) as response:
            if response.status_code != 200:
                raise DistillError(f"the server refuses ({response.status_code}): {response.read().decode()[:300]}")
            for line in response.iter_lines():
                if line.startswith("data: {"):
                    event = json.loads(line.removeprefix("data: "))
                    if "error" in event:
                        raise DistillError(f"the server broke off: {event['error']['message']}")
                    yield from (choice["delta"].get("content") or "" for choice in event["choices"])
    except httpx2.TransportError as error:
        raise DistillError(f"{client.base_url} cannot be reached ({error}): start scripts/serve.py") from None


if __name__ == "__main__":
    main()
