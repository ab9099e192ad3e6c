"""What the server says to good and bad requests, over a real connection."""

import asyncio
import base64
import json
import socket

import httpx2
import pytest
from serving import Running, until

PROMPT = [4, 7, 8, 9, 5]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"prompt": [[1, 2], "x"]}, "prompt"),
        ({"prompt": []}, "a prompt needs tokens"),
        ({"prompt": [40]}, "ids from 0 to 39"),
        ({"prompt": [-1]}, "ids from 0 to 39"),
        ({"prompt": "abc", "max_tokens": 0}, "max_tokens"),
        ({"prompt": "abc", "max_tokens": 1022}, "context is 1024 tokens"),
        ({"prompt": [7] * 2000}, "context is 1024 tokens"),
        ({"prompt": "abc", "temperature": -1}, "temperature"),
        ({"prompt": "abc", "top_p": 0}, "top_p"),
        ({"prompt": "abc", "best_of": 4}, "best_of 4 is not supported"),
        ({"prompt": "abc", "logprobs": 4}, "this server tells 3"),
        ({"prompt": "abc", "tempreature": 1}, "tempreature"),
        ({"prompt": "abc", "n": 100}, "takes 28 a request"),
        ({"prompt": "abc", "top_k": 2**31}, "top_k"),
        ({"prompt": "abc", "n": 2, "first_choice": 2**31 - 1}, "choices are numbered below"),
        ({"prompt": "abc", "stop": [""]}, "a stop string must have a character"),
        ({}, "prompt: Field required"),
    ],
)
def test_bad_requests_are_told_what_is_wrong(server: Running, body: dict, said: str) -> None:
    response = server.post("/v1/completions", **body)
    assert response.status_code == 400
    assert said in response.json()["error"]["message"]


def test_bad_bytes(server: Running) -> None:
    for content in (b"{", b"", b"[]", b"\xff\xfe", b"3"):
        assert server.client.post("/v1/completions", content=content).status_code == 400
    assert server.client.post("/v1/completions", content=b" " * 17_000_000).status_code == 413
    assert server.client.get("/v1/completions").status_code == 405
    assert server.client.get("/nowhere").status_code == 404
    assert server.post("/v1/completions", prompt="abc", model="gpt-4").status_code == 404
    assert server.client.get("/health").json() == {"status": "ok"}


@pytest.mark.parametrize("token", [None, "Bearer", "Bearer wrong", "secret", "Bearer sécret"])
def test_a_wrong_token_gets_health_alone(server: Running, token: str | None) -> None:
    headers = {"Authorization": token.encode()} if token is not None else {}
    with httpx2.Client(base_url=server.url, headers=headers, trust_env=False) as client:
        for path in ("/v1/completions", "/v1/chat/completions", "/leave"):
            assert client.post(path, json={"prompt": "abc"}).status_code == 401
        assert client.get("/v1/models").status_code == client.get("/metrics").status_code == 401
        assert client.get("/health").status_code == 200


def test_a_sample_is_its_seed_and_number(server: Running) -> None:
    """Choice i draws as sample first_choice + i; neighbours, prompts in one request and streaming change nothing."""
    asked = {"max_tokens": 20, "seed": 2**64 - 5, "logprobs": 0, "return_token_ids": True, "temperature": 0.8}
    four = server.complete(prompt=PROMPT, n=4, **asked)["choices"]
    two = server.complete(prompt=PROMPT, n=2, first_choice=2, **asked)["choices"]
    keys = ("token_ids", "text", "logprobs", "finish_reason")
    assert [[c[k] for k in keys] for c in four[2:]] == [[c[k] for k in keys] for c in two]
    both = server.complete(prompt=[[9, 9], PROMPT], n=2, **asked)["choices"]
    assert [c["token_ids"] for c in both[2:]] == [c["token_ids"] for c in four[:2]]
    assert both[2]["prompt_token_ids"] == PROMPT
    assert len({tuple(c["token_ids"]) for c in four}) == 4
    for choice in four:
        assert (
            len(choice["logprobs"]["token_logprobs"]) == len(choice["token_ids"]) == len(choice["logprobs"]["tokens"])
        )
    streamed = [{"token_ids": [], "text": "", "finish_reason": None} for _ in four]
    for event in events(server, prompt=PROMPT, n=4, stream=True, **asked):
        for choice in event["choices"]:
            one = streamed[choice["index"]]
            one["token_ids"] += choice["token_ids"]
            one["text"] += choice["text"]
            one["finish_reason"] = choice["finish_reason"]
    assert streamed == [{k: c[k] for k in ("token_ids", "text", "finish_reason")} for c in four]


def test_packed_logits_are_told_as_far_as_the_server_was_started_for_them(server: Running) -> None:
    asked = {"prompt": [7, 8], "max_tokens": 4, "seed": 1, "return_token_ids": True}
    choice = server.complete(top_logits=2, **asked)["choices"][0]
    sizes = {name: len(base64.b64decode(text)) for name, text in choice["logits"].items()}
    tokens = len(choice["token_ids"])
    assert sizes == {"logsumexp": 4 * tokens, "top_ids": 4 * tokens, "top_logprobs": 4 * tokens}
    assert "logits" not in server.complete(**asked)["choices"][0]
    for more, complaint in (
        ({"top_logits": 4}, "top_logits 4: this server tells 3, start it with --top-logprobs 4"),
        ({"sampled_logits": 1}, "this server tells 0, start it with --sampled-logits 1"),
        ({"top_logits": 2, "stream": True}, "packed logits come with whole answers"),
    ):
        response = server.post("/v1/completions", **asked, **more)
        assert response.status_code == 400
        assert complaint in response.json()["error"]["message"]


def test_stops(server: Running) -> None:
    """A stop string ends the text before it and frees the slot; a stop id ends the tokens with it."""
    asked = {"prompt": PROMPT, "max_tokens": 150, "seed": 1, "ignore_eos": True, "return_token_ids": True}
    choice = server.complete(**asked)["choices"][0]
    assert (len(choice["token_ids"]), choice["finish_reason"]) == (150, "length")
    text = choice["text"]
    stop = text[70:73]
    cut = server.complete(stop=["never so", stop], **asked)["choices"][0]
    assert (cut["text"], cut["finish_reason"]) == (text[: text.index(stop)], "stop")
    assert len(cut["token_ids"]) < 150
    streamed = "".join(e["choices"][0]["text"] for e in events(server, stop=stop, stream=True, **asked))
    assert streamed == cut["text"]
    end = choice["token_ids"][10]
    by_id = server.complete(stop_token_ids=[end], **asked)["choices"][0]
    assert by_id["token_ids"] == choice["token_ids"][: choice["token_ids"].index(end) + 1]
    until(lambda: server.gauge("distill_slots_busy") == 0)


def test_greedy_and_filters(server: Running) -> None:
    asked = {"prompt": PROMPT, "max_tokens": 12, "return_token_ids": True}
    greedy = server.complete(temperature=0, **asked)["choices"][0]["token_ids"]
    for narrow in ({"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}):
        assert server.complete(seed=3, **narrow, **asked)["choices"][0]["token_ids"] == greedy
    assert server.complete(top_k=-1, **asked)["choices"][0]["token_ids"] != greedy


def test_a_client_that_goes_frees_its_slots(server: Running) -> None:
    for stream in (False, True):
        before = server.gauge("distill_generated_tokens_total")
        body = json.dumps(
            {"prompt": PROMPT, "n": 28, "max_tokens": 1000, "ignore_eos": True, "stream": stream}
        ).encode()
        with raw(server, body) as connection:
            until(lambda: server.gauge("distill_slots_busy") == 4 and server.gauge("distill_queue_requests") >= 1)
            connection.shutdown(socket.SHUT_RDWR)
        until(lambda: server.gauge("distill_slots_busy") == server.gauge("distill_queue_requests") == 0)
        assert server.gauge("distill_generated_tokens_total") - before < 28 * 1000


def test_a_client_that_never_reads_blocks_nobody(server: Running) -> None:
    body = json.dumps({"prompt": PROMPT, "n": 20, "max_tokens": 180, "ignore_eos": True, "stream": True, "logprobs": 0})
    with raw(server, body.encode()) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        assert len(server.complete(prompt=PROMPT, max_tokens=8)["choices"]) == 1
        until(lambda: server.gauge("distill_slots_busy") == 0)


def test_a_thousand_at_once(server: Running) -> None:
    async def ask_all() -> list[httpx2.Response]:
        limits = httpx2.Limits(max_connections=1000)
        async with httpx2.AsyncClient(
            base_url=server.url, headers=server.client.headers, limits=limits, timeout=60, trust_env=False
        ) as client:
            body = {"prompt": PROMPT, "max_tokens": 8}
            return await asyncio.gather(*(client.post("/v1/completions", json=body) for _ in range(1000)))

    answers = asyncio.run(ask_all())
    assert {answer.status_code for answer in answers} == {200, 429}
    assert all(answer.headers["Retry-After"] == "1" for answer in answers if answer.status_code == 429)
    assert len(server.complete(prompt=PROMPT)["choices"]) == 1
    until(lambda: server.gauge("distill_slots_busy") == server.gauge("distill_queue_requests") == 0)


def test_metrics(server: Running) -> None:
    server.complete(prompt=PROMPT, max_tokens=8)
    assert server.gauge("distill_slots") == 4
    assert server.gauge("distill_tokens_per_second") >= 0
    assert server.gauge("distill_time_to_first_token_seconds_count") >= 1
    text = server.client.get("/metrics").text
    assert 'distill_requests_total{path="/v1/completions",status="200"}' in text


def events(server: Running, **body: object) -> list[dict]:
    """The events of a stream, which must end as OpenAI's do."""
    with server.client.stream("POST", "/v1/completions", json=body) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def raw(server: Running, body: bytes) -> socket.socket:
    """A connection that has sent a request and not read yet."""
    url = httpx2.URL(server.url)
    connection = socket.create_connection((url.host, url.port))
    lines = ["POST /v1/completions HTTP/1.1", "Host: x", "Authorization: Bearer secret", f"Content-Length: {len(body)}"]
    connection.sendall("\r\n".join([*lines, "", ""]).encode() + body)
    return connection
