"""The official client, as it comes."""

import openai
import pytest
from serving import Running


@pytest.fixture
def client(server: Running) -> openai.OpenAI:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="secret", max_retries=0) as client:
        yield client


def test_completions(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    whole = client.completions.create(model=model.id, prompt="abc", max_tokens=8, n=2, seed=1, logprobs=0)
    assert [choice.index for choice in whole.choices] == [0, 1]
    assert whole.usage.completion_tokens == sum(len(choice.logprobs.token_logprobs) for choice in whole.choices)
    stream = client.completions.create(model=model.id, prompt="abc", max_tokens=8, seed=1, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == whole.choices[0].text
    ids = client.completions.create(
        model=model.id, prompt=[7, 8], max_tokens=4, extra_body={"return_token_ids": True, "top_k": 1}
    )
    assert len(ids.choices[0].token_ids) <= 4


def test_alternatives(client: openai.OpenAI) -> None:
    """Greedy takes the likeliest: the first of the alternatives, with the same logprob."""
    asked = {"model": "tiny", "max_tokens": 6, "temperature": 0.0, "extra_body": {"ignore_eos": True}}
    (choice,) = client.completions.create(prompt="abc", logprobs=3, **asked).choices
    for best, logprob in zip(choice.logprobs.top_logprobs, choice.logprobs.token_logprobs, strict=True):
        assert len(best) == 3
        assert max(best.values()) == logprob
    turn = [{"role": "user", "content": "abc"}]
    (chat,) = client.chat.completions.create(messages=turn, logprobs=True, top_logprobs=2, **asked).choices
    for token in chat.logprobs.content:
        assert token.top_logprobs[0].logprob == token.logprob
        assert token.top_logprobs[0].token == token.token


def test_chat(client: openai.OpenAI) -> None:
    asked = {"model": "tiny", "messages": [{"role": "user", "content": "abc"}], "seed": 2, "max_tokens": 30}
    whole = client.chat.completions.create(**asked, logprobs=True)
    assert whole.choices[0].message.role == "assistant"
    assert len(whole.choices[0].logprobs.content) == whole.usage.completion_tokens
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert said == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].usage == whole.usage
    parts = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "bc"}]}]
    assert client.chat.completions.create(**asked | {"messages": parts}).choices[0].message.content == said


def test_errors_are_the_clients_own(client: openai.OpenAI, server: Running) -> None:
    with pytest.raises(openai.BadRequestError, match="context is 1024 tokens"):
        client.completions.create(model="tiny", prompt="abc", max_tokens=2000)
    with pytest.raises(openai.NotFoundError, match="model gpt-4 is not served"):
        client.completions.create(model="gpt-4", prompt="abc")
    with pytest.raises(openai.BadRequestError, match="tools"):
        client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "a"}],
            tools=[{"type": "function", "function": {"name": "f", "parameters": {}}}],
        )  # fmt: skip
    with (
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError),
    ):
        stranger.models.list()
