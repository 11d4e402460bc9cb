"""The page in a real browser: it asks what was set, shows what came, and what came never acts.

The server is scripted, so that it can say what no model says and cut its reply where it hurts."""

from __future__ import annotations

import json
import re
import subprocess
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from page_server import PageServer, card, delta, ended, endless, event
from playwright.sync_api import Browser, Locator, Page, expect

from browser import Watch

HOSTILE = (
    "</div></script><script>window.hit=1</script><img src=x onerror='window.hit=1'><b>bold</b>"
    '"><svg onload=window.hit=1> javascript:window.hit=1 [link](https://example.invalid/m) '
    "![i](https://example.invalid/i.png) <a href='https://example.invalid/x'>x</a> &lt;i&gt; "
    "<style>*{display:none}</style><link rel=stylesheet href=//example.invalid/y.css>"
    "<base href=//example.invalid><meta http-equiv=refresh content='0;url=//example.invalid'>"
    "<iframe srcdoc='<script>parent.hit=1</script>'></iframe><form action=//example.invalid><textarea>"
)
TAGS = "[...new Set([...document.querySelectorAll('*')].map(e => e.tagName.toLowerCase()))].sort()"


@pytest.fixture
def server() -> Iterator[PageServer]:
    served = PageServer()
    thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield served
    served.shutdown()
    served.server_close()


@pytest.fixture
def watch(chromium: Browser) -> Iterator[Watch]:
    watcher = Watch(chromium)
    yield watcher
    watcher.context.close()


def opened(watch: Watch, server: PageServer) -> Page:
    page = watch.open(server.address)
    expect(page.locator("#model option")).to_have_count(len(server.models))
    return page


def asked(page: Page, question: str = "How many?", outcome: str = "Done") -> None:
    """Ask, and wait until every reply that is shown came to `outcome`."""
    page.fill("#question", question)
    page.get_by_role("button", name="Ask").click()
    for state in page.locator(".pane:visible .state").all():
        expect(state).to_contain_text(outcome, timeout=20_000)


def text(box: Locator) -> str:
    """What a box holds, generated words and line breaks of the layout left out."""
    return str(box.evaluate("box => box.textContent"))


def facts(page: Page, reply: str = "A") -> dict[str, str]:
    pane = page.locator(".pane").nth("AB".index(reply))
    return dict(zip(pane.locator("dt").all_inner_texts(), pane.locator("dd").all_inner_texts(), strict=True))


def test_thinking_answer_and_counts_are_shown_and_forced_text_is_marked(
    watch: Watch, server: PageServer
) -> None:
    page = opened(watch, server)
    server.replies = [
        [
            b": ping\n\n",
            event({"choices": [{"index": 0, "delta": {"role": "assistant"}, "finish_reason": None}]}),
            delta(thinking="So 3"),
            delta(thinking=" + 4."),
            delta(thinking="\nWa", forced=True),
            delta(thinking="it", forced=True),
            delta(thinking=", 7."),
            delta(answer="Final Answer:", forced=True),
            delta(answer=" 7"),
            *ended(finish_reason="length", budget=512, min=5),
        ]
    ]
    asked(page)
    assert text(page.locator(".text.thinking").first) == "So 3 + 4.\nWait, 7."
    assert text(page.locator(".text.answer").first) == "Final Answer: 7"
    assert [text(mark) for mark in page.locator(".text mark").all()] == ["\nWait", "Final Answer:"]
    mark = page.locator(".text mark").first
    seen = "mark => [getComputedStyle(mark, '::before').content, getComputedStyle(mark).borderBottomStyle]"
    assert mark.evaluate(seen) == ['"forced"', "solid"]
    shown = facts(page)
    assert shown["Thinking"] == "64 tokens: 60 by the model, 4 forced"
    assert shown["Closed by"] == "the budget"
    assert shown["Refused"] == "2 closes, 2 wait strings written"
    assert shown["Prompt"] == "21 tokens"
    assert shown["Reply"].startswith("90 tokens with thinking and markers, ")
    assert shown["Ended"] == "cut off: no room was left for more"
    assert page.locator(".meter i").evaluate_all("all => all.slice(0, 2).map(i => i.style.width)") == [
        "11.7188%",
        "0.78125%",
    ]
    assert watch.errors == []


def test_every_setting_reaches_the_request(watch: Watch, server: PageServer) -> None:
    server.models.append(card("other"))
    page = opened(watch, server)
    server.replies = [ended(), ended(), ended()]
    plain = {
        "model": "lab",
        "messages": [{"role": "user", "content": "How\nmany?"}],
        "temperature": 0,
        "seed": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    asked(page, "How\nmany?")
    assert server.asked[-1] == plain | {"thinking_token_budget": 512}
    page.get_by_label("Thinking budget, tokens").first.fill("0")
    page.get_by_label("Minimum, tokens").first.fill("16")
    page.get_by_label("Closes to refuse").first.fill("3")
    page.get_by_label("Wait string").first.fill(r"\nWait, |Hmm")
    page.get_by_label("Temperature").fill("0.7")
    page.get_by_label("Seed").fill("9007199254740991")
    page.get_by_label("Longest reply").fill("900")
    page.get_by_label("Model").select_option("other")
    asked(page, "How\nmany?")
    assert server.asked[-1] == plain | {
        "model": "other",
        "temperature": 0.7,
        "seed": 9007199254740991,
        "thinking_token_budget": 0,
        "min_thinking_tokens": 16,
        "thinking_refuse_closes": 3,
        "thinking_wait": ["\nWait, ", "Hmm"],
        "max_completion_tokens": 900,
    }
    heading = page.locator(".pane h2").first
    assert (
        heading.inner_text() == "Reply · no thinking, at least 16 tokens, 3 closes refused, “Wait,” and “Hmm”"
    )
    page.get_by_label("exact number of tokens").first.fill("")
    asked(page, "How\nmany?")
    assert "thinking_token_budget" not in server.asked[-1]
    assert len(server.asked) == 3


def test_the_slider_runs_from_none_over_doublings_to_no_limit(watch: Watch, server: PageServer) -> None:
    server.models = [card("lab", context=100)]
    page = opened(watch, server)
    slider, exact = page.locator("[name=slider]").first, page.locator("[name=budget]").first
    slider.focus()
    page.keyboard.press("Home")
    found = [(exact.input_value(), slider.get_attribute("aria-valuetext"))]
    for _ in range(int(slider.get_attribute("max") or 0)):
        page.keyboard.press("ArrowRight")
        found.append((exact.input_value(), slider.get_attribute("aria-valuetext")))
    budgets = ["0", "4", "6", "8", "12", "16", "24", "32", "48", "64", "96", ""]
    assert [budget for budget, _ in found] == budgets
    assert [found[0][1], found[1][1], found[-1][1]] == ["no thinking", "at most 4 tokens", "no limit"]
    exact.fill("50")  # between two places of the slider: the number counts
    assert slider.input_value() == "9"
    server.replies = [ended()]
    asked(page)
    assert server.asked[-1]["thinking_token_budget"] == 50
    assert page.title() == "lab · tutelage"
    assert "share 100 tokens" in page.locator("#about").inner_text()


@pytest.mark.slow
def test_two_settings_stream_at_the_same_time(watch: Watch, server: PageServer) -> None:
    page = opened(watch, server)
    page.get_by_label("Compare two settings").check()
    page.get_by_label("Seed").fill("5")
    met = threading.Barrier(2, timeout=10)  # each reply goes on only when the other one has begun
    for budget, word in ((512, "long"), (128, "short")):
        server.by_budget[budget] = [
            delta(thinking=f"{word} "),
            met.wait,
            delta(thinking="thought"),
            met.wait,
            delta(answer=word),
            *ended(budget=budget),
        ]
    asked(page)
    assert [text(box) for box in page.locator(".text.thinking").all()] == ["long thought", "short thought"]
    assert [text(box) for box in page.locator(".text.answer").all()] == ["long", "short"]
    assert page.locator(".pane h2").all_inner_texts() == ["A · at most 512 tokens", "B · at most 128 tokens"]
    first, second = sorted(server.asked, key=lambda body: -body["thinking_token_budget"])
    assert {**first, "thinking_token_budget": 128} == second
    assert second["seed"] == 5


@pytest.mark.parametrize("way", ["button", "escape", "close"])
def test_stopping_or_leaving_hangs_up(watch: Watch, server: PageServer, way: str) -> None:
    page = opened(watch, server)
    server.replies = [endless([delta(thinking="I think ")], pause=0.01), ended()]
    asked(page, outcome="Thinking")
    if way == "close":
        page.close()
        assert server.left.wait(10)
        return
    if way == "button":
        page.get_by_role("button", name="Stop").click()
    else:
        page.keyboard.press("Escape")
    assert server.left.wait(10)
    expect(page.locator(".state").first).to_contain_text("Stopped after")
    assert text(page.locator(".text.thinking").first).startswith("I think more and ")
    heading = re.fullmatch(r"Thinking · (\d+) of 512 tokens", page.locator("h3").first.inner_text())
    assert heading, page.locator("h3").first.inner_text()
    assert int(heading[1]) == text(page.locator(".text.thinking").first).count("more") + 1
    assert page.locator(".problem:visible").count() == 0
    asked(page)  # and the next question is asked


def test_ask_does_nothing_while_a_reply_is_coming(watch: Watch, server: PageServer) -> None:
    page = opened(watch, server)
    go = threading.Event()
    server.replies = [[delta(thinking="…"), go.wait, *ended()]]
    asked(page, outcome="Thinking")
    ask = page.get_by_role("button", name="Ask")
    assert ask.get_attribute("aria-disabled") == "true"
    ask.focus()
    page.keyboard.press("Enter")
    page.keyboard.press("Control+Enter")
    go.set()
    expect(page.locator(".state").first).to_contain_text("Done")
    assert ask.get_attribute("aria-disabled") == "false"
    assert len(server.asked) == 1


REFUSED = json.dumps({"error": {"message": "min is above max", "type": "invalid_request_error"}}).encode()


REFUSALS: list[tuple[tuple[int, dict[str, str], bytes], str]] = [
    ((400, {"Content-Type": "application/json"}, REFUSED), "No reply (400): min is above max"),
    ((429, {"Retry-After": "7"}, REFUSED), "No reply (429): min is above max\nTry again in 7 s."),
    ((502, {"Content-Type": "text/html"}, b"<h1>Bad</h1>"), "No reply (502): <h1>Bad</h1>"),
    ((500, {}, b'{"error": "broken"}'), "No reply (500): broken"),
    ((500, {}, b""), "No reply (500): Internal Server Error"),
    ((302, {"Location": "http://example.invalid/"}, b""), "No reply: The server cannot be reached."),
    ((200, {"Content-Type": "application/json"}, b"{}"), "No reply: The server sent application/json"),
]


@pytest.mark.slow
def test_a_refusal_is_shown_in_the_servers_words(watch: Watch, server: PageServer) -> None:
    page = opened(watch, server)
    problem = page.get_by_role("alert").filter(visible=True)
    for refusal, words in REFUSALS:
        server.refusals = [refusal]
        asked(page, outcome="Failed")
        assert problem.inner_text().startswith(words)
        assert not page.locator(".said").first.is_visible()
        server.replies = [[delta(answer="7"), *ended()]]
        asked(page)  # the next question is asked, and the message is gone
        assert problem.count() == 0
    assert not any("example.invalid" in url for url in watch.requests)


BROKEN = "The server broke off before the reply was complete."
LASTS: list[tuple[list[bytes], str]] = [
    ([event({"error": {"message": "the engine stopped", "code": 500}})], "the engine stopped"),
    ([event({"error": "as text"})], "as text"),
    ([b"data: {not json\n\n"], "The server sent what is no JSON: {not json"),
    ([], BROKEN),
    ([*ended()[:2], b"data: [DONE]\n"], BROKEN),  # without its empty line an event was cut off
    ([b"data: [DONE]\n\n"], BROKEN),
    (ended()[:2], BROKEN),
]


def test_a_reply_that_breaks_off_keeps_what_came_and_says_why(watch: Watch, server: PageServer) -> None:
    page = opened(watch, server)
    for last, words in LASTS:
        server.replies = [[delta(thinking="half a thou"), *last]]
        asked(page, outcome="Failed")
        assert page.get_by_role("alert").filter(visible=True).inner_text() == f"The reply broke off: {words}"
        assert text(page.locator(".text.thinking").first) == "half a thou"


# Hands the bytes of every stream on in pieces of `size`: cuts fall at any place, whatever the network does.
RECUT = """
const real = window.fetch;
window.fetch = async (...given) => {
  const response = await real(...given);
  if (!(response.headers.get("Content-Type") || "").startsWith("text/event-stream")) return response;
  const bytes = new Uint8Array(await response.arrayBuffer());
  let at = 0;
  const body = new ReadableStream({ pull(stream) {
    if (at >= bytes.length) return stream.close();
    stream.enqueue(bytes.slice(at, at += window.size));
  } });
  return new Response(body, { headers: response.headers });
};
"""


@pytest.mark.slow
def test_events_survive_any_cut_and_every_line_end(watch: Watch, server: PageServer) -> None:
    watch.page.add_init_script(RECUT)
    page = opened(watch, server)
    said = "Größe 🦉 漢字 e\u0301"
    lines = [
        ": a comment",
        "event: message",
        "id: 1",
        'data: {"choices": [{"index": 0,',
        f'data:"delta": {{"reasoning_content": "{said}", "reasoning": "{said}", "content": ""}}}}]}}',
        "",
        "",
        "retry: 10",
        "data: " + json.dumps({"choices": [{"index": 0, "delta": {"content": said}}]}, ensure_ascii=False),
        "",
        ": ping",
        "",
    ]
    last = b"".join(ended()).decode().splitlines()
    for end in ("\n", "\r\n", "\r"):
        reply = "\ufeff" + end.join([*lines, *last, "", ""])
        for size in (1, 2, 3, 64, 10_000):
            page.evaluate("size => { window.size = size; }", size)
            server.replies = [[reply.encode()]]
            asked(page)
            assert text(page.locator(".text.thinking").first) == said
            assert text(page.locator(".text.answer").first) == said


def test_text_of_a_model_or_server_never_becomes_markup_nor_leaves_the_origin(
    watch: Watch, server: PageServer
) -> None:
    server.models = [card(f"lab {HOSTILE}")]
    page = opened(watch, server)
    server.replies = [
        [delta(thinking="clean"), delta(thinking="t", forced=True), delta(answer="7"), *ended()]
    ]
    asked(page)
    clean = page.evaluate(TAGS)
    page.get_by_label("Wait string").first.fill(HOSTILE.replace("|", ""))
    page.get_by_text("The request as a curl command").first.click()
    server.replies = [
        [
            delta(thinking=HOSTILE),
            delta(thinking=HOSTILE, forced=True),
            delta(answer=HOSTILE),
            *ended(closed_by=HOSTILE, used=HOSTILE, budget=HOSTILE),
        ]
    ]
    asked(page, HOSTILE)
    assert text(page.locator(".text.thinking").first) == HOSTILE * 2
    assert text(page.locator(".text.answer").first) == HOSTILE
    assert facts(page)["Closed by"] == HOSTILE
    assert page.evaluate(TAGS) == clean
    server.replies = [[delta(answer="7"), event({"error": {"message": HOSTILE}})]]
    asked(page, outcome="Failed")
    assert HOSTILE in text(page.get_by_role("alert").filter(visible=True))
    page.wait_for_timeout(100)
    assert page.evaluate("window.hit") is None
    assert set(page.evaluate(TAGS)) <= {*clean, "b"}  # the page's own <b> before an error
    assert (
        page.locator("img, iframe, a, b:text-is('bold'), [onerror], [onload], [style*=display]").count() == 0
    )
    assert set(server.paths) == {"/", "/v1/models", "/v1/chat/completions"}
    assert all(url.startswith(server.address) for url in watch.requests)
    assert watch.errors == []


def test_control_and_reordering_characters_are_shown_as_symbols(watch: Watch, server: PageServer) -> None:
    page = opened(watch, server)
    server.replies = [
        [delta(answer="pay \u202e001\u202c \x00\x1b[2J \x7f\x85\u2066 \ud83d end\tok\n"), *ended()]
    ]
    asked(page)
    shown = text(page.locator(".text.answer").first)
    assert shown == "pay ⟨U+202E⟩001⟨U+202C⟩ ␀␛[2J ␡⟨U+0085⟩⟨U+2066⟩ \ufffd end\tok\n"


@pytest.mark.slow
@pytest.mark.parametrize("line", ["<b>no line breaks ", "<i>a line of text\n"])
def test_a_megabyte_is_shown_whole(watch: Watch, server: PageServer, line: str) -> None:
    page = opened(watch, server)
    whole = line * (1_000_000 // len(line))
    pieces = [delta(thinking=whole[at : at + 700]) for at in range(0, 500_000, 700)]
    pieces += [delta(answer=whole[at : at + 50_000]) for at in range(0, 1_000_000, 50_000)]
    server.replies = [[*pieces, *ended()]]
    asked(page)
    assert text(page.locator(".text.answer").first) == whole
    assert text(page.locator(".text.thinking").first) == whole[: 715 * 700]
    assert page.locator(".text b, .text i").count() == 0
    bottom = "box => box.scrollHeight - box.scrollTop - box.clientHeight"
    assert page.locator(".text.answer").first.evaluate(bottom) < 24


def test_the_view_follows_the_text_until_the_reader_scrolls_up(watch: Watch, server: PageServer) -> None:
    page = opened(watch, server)
    more, end = threading.Event(), threading.Event()
    lines = delta(thinking="a line\n" * 100)
    server.replies = [[lines, more.wait, lines, end.wait, *ended()]]
    asked(page, outcome="Thinking")
    box = page.locator(".text.thinking").first
    expect(box).to_contain_text("a line")
    bottom = "box => box.scrollHeight - box.scrollTop - box.clientHeight"
    assert box.evaluate(bottom) < 2  # drawn and scrolled in one frame
    box.evaluate(
        "box => new Promise(done => {"
        " box.addEventListener('scroll', () => done(null), { once: true }); box.scrollTop = 300; })"
    )
    more.set()
    end.set()
    expect(page.locator(".state").first).to_contain_text("Done")
    assert len(text(box)) == 1400
    assert box.evaluate("box => box.scrollTop") == 300


def test_the_key_is_asked_for_on_401_and_lives_in_memory_only(watch: Watch, server: PageServer) -> None:
    server.key = "sk-right-0123456789"
    page = watch.open(server.address)
    expect(page.locator("#trouble")).to_have_text("This server wants a key. no such key")
    expect(page.get_by_label("Key", exact=True)).to_be_focused()
    page.keyboard.type("sk-wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_label("Key", exact=True)).to_be_focused()
    assert page.get_by_label("Key", exact=True).input_value() == ""
    page.keyboard.type(server.key)
    page.keyboard.press("Enter")
    expect(page.locator("#model option")).to_have_count(1)
    assert not page.locator("#key-form").is_visible()
    server.replies = [[delta(answer="7"), *ended()]]
    asked(page)
    assert server.keys[-1] == f"Bearer {server.key}"
    page.get_by_text("The request as a curl command").first.click()
    expect(page.locator("pre").first).to_contain_text('-H "Authorization: Bearer $API_KEY"')
    kept = page.evaluate(
        "JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, location.href,"
        " document.documentElement.outerHTML, [...document.querySelectorAll('input')].map(i => i.value)])"
    )
    assert server.key not in kept
    server.key = "changed"  # also a key that stops being right is asked for again
    asked(page, outcome="Failed")
    expect(page.get_by_label("Key", exact=True)).to_be_focused()


def test_a_server_that_is_gone_is_named_and_can_be_tried_again(watch: Watch, server: PageServer) -> None:
    page = opened(watch, server)
    watch.context.set_offline(True)
    asked(page, outcome="Failed")
    assert "The server cannot be reached" in page.get_by_role("alert").filter(visible=True).inner_text()
    watch.context.set_offline(False)
    fresh = server.models
    server.models = None  # type: ignore[assignment]  # a list that is none
    page.reload()
    expect(page.locator("#trouble")).to_contain_text("The list of models did not come")
    server.models = fresh
    page.get_by_role("button", name="Try again").click()
    expect(page.locator("#model option")).to_have_count(1)
    assert not page.locator("#trouble").is_visible()


def test_the_curl_command_says_the_same_in_a_shell(watch: Watch, server: PageServer) -> None:
    page = opened(watch, server)
    question = "it's $(touch x) `y` \\ \"q\" \u202e ü 🦉\nend' ; echo hit #"
    server.replies = [ended()]
    asked(page, question)
    page.get_by_text("The request as a curl command").first.click()
    expect(page.locator("pre").first).to_contain_text("curl")
    command = page.locator("pre").first.inner_text()
    assert command.isascii()
    page.get_by_role("button", name="Copy").click()
    expect(page.get_by_role("button", name="Cop").first).to_be_visible()
    shell = "curl() { printf '%s\\0' \"$@\"; }\n" + command
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, check=True, timeout=10)
    *options, body = done.stdout.removesuffix("\0").split("\0")
    assert options == [
        "--no-buffer",
        f"{server.address}v1/chat/completions",
        "-H",
        "Content-Type: application/json",
        "-d",
    ]
    assert json.loads(body) == server.asked[-1]
    page.get_by_label("Seed").fill("77")  # the command follows the settings
    assert '"seed": 77' in page.locator("pre").first.inner_text()


def test_the_policy_forbids_what_an_injected_script_would_try(watch: Watch, server: PageServer) -> None:
    page = opened(watch, server)
    page.evaluate(
        "() => { const add = (tag, set) => {"
        "   const e = document.createElement(tag); set(e); document.body.append(e); };"
        " try { document.body.innerHTML = '<b>x</b>'; } catch { window.refused = 1; }"
        " add('script', e => { try { e.textContent = 'window.hit = 1'; } catch { window.refused += 1; } });"
        " add('img', e => { e.src = 'http://example.invalid/x.png'; });"
        " add('iframe', e => { e.src = 'http://example.invalid/'; });"
        " add('form', e => { e.action = 'http://example.invalid/'; e.submit(); });"
        " fetch('http://example.invalid/').catch(() => 0); }"
    )
    page.wait_for_timeout(200)
    assert page.evaluate("[window.hit, window.refused]") == [None, 2]
    assert page.url == server.address
    assert sum("Content Security Policy" in error for error in watch.errors) >= 3
    assert set(server.paths) == {"/", "/v1/models"}


def test_every_control_has_a_name_and_the_keyboard_reaches_it(watch: Watch, server: PageServer) -> None:
    page = opened(watch, server)
    page.get_by_label("Compare two settings").check()
    controls = page.locator("input:visible, select:visible, textarea:visible, button:visible")
    nameless = "all => all.filter(e => !(e.labels && e.labels.length) && !e.textContent.trim()).length"
    assert controls.evaluate_all(nameless) == 0
    page.locator("#question").focus()
    reached = []
    for _ in range(controls.count() + 12):
        reached.append(page.evaluate("document.activeElement.name || document.activeElement.id"))
        page.keyboard.press("Tab")
    both = ["slider", "budget", "least", "refuse", "wait"]
    order = [
        name for name in reached if name in {*both, "question", "model", "seed", "ask", "stop", "compare"}
    ]
    assert order[:16] == ["question", *both, *both, "model", "seed", "ask", "stop", "compare"]


@pytest.mark.slow
def test_a_screen_reader_hears_the_turns_and_the_answer_not_every_token(
    watch: Watch, server: PageServer
) -> None:
    page = opened(watch, server)
    page.evaluate(
        "() => { window.heard = []; const box = document.getElementById('announcer');"
        " new MutationObserver(() => window.heard.push(box.textContent)).observe(box, { childList: true }); }"
    )
    words = [delta(thinking="word ") for _ in range(300)]
    server.replies = [[*words, delta(answer="It is 7."), *ended()]]
    asked(page)
    announcer = page.get_by_role("status")
    expect(announcer).to_contain_text("Answer: It is 7.")
    heard = page.evaluate("window.heard")
    assert len(heard) <= 4  # asked, thinking, answering, done: or fewer, put together
    assert heard[0] == "Asked."
    assert "word" not in " ".join(heard)
    live = page.locator(".text.thinking").first.evaluate(
        "box => box.closest('[aria-live], [role=status], [role=log]')"
    )
    assert live is None


CONTRAST = """all => all.filter(e => e.getClientRects().length).map(e => {
  const parse = (color) => color.match(/[\\d.]+/g).map(Number);
  let back = e;
  while (parse(getComputedStyle(back).backgroundColor)[3] === 0) back = back.parentElement;
  const light = ([r, g, b]) => [r, g, b].map(c => c / 255)
    .map(c => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [.2126, .7152, .0722][i], 0);
  const [a, b] = [parse(getComputedStyle(e).color), parse(getComputedStyle(back).backgroundColor)].map(light);
  return [(Math.max(a, b) + .05) / (Math.min(a, b) + .05), e.tagName + '.' + e.className];
}).filter(([ratio]) => ratio < 4.5)"""


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (320, "dark")])
def test_nothing_sticks_out_and_all_text_can_be_read(
    chromium: Browser, server: PageServer, scheme: str, width: int
) -> None:
    settings: dict[str, Any] = {"color_scheme": scheme}
    watch = Watch(chromium, width, **settings)
    page = opened(watch, server)
    page.get_by_label("Compare two settings").check()
    page.get_by_text("The request as a curl command").first.click()
    long = "x" * 400
    server.by_budget[512] = [
        delta(thinking=long),
        delta(thinking=long, forced=True),
        delta(answer=long),
        *ended(),
    ]
    server.by_budget[128] = [delta(thinking=long), event({"error": {"message": long}})]
    page.fill("#question", long)
    page.get_by_role("button", name="Ask").click()
    expect(page.locator(".state").first).to_contain_text("Done")
    expect(page.locator(".state").last).to_contain_text("Failed")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    selectors = (
        "h1, h2, h3, h3 span, p, label, legend, dt, dd, mark, summary, pre, "
        "button:not([aria-disabled=true]), .problem, .problem b"
    )
    assert page.locator(selectors).evaluate_all(CONTRAST) == []
    watch.context.close()


def test_a_model_without_thinking_has_nothing_to_set(watch: Watch, server: PageServer) -> None:
    server.models = [card("plain", thinks=False), card("plain@think=low", thinks=False)]
    page = watch.open(server.address)
    expect(page.locator("#model option")).to_have_text(["plain"])
    for name in ("slider", "budget", "least", "refuse", "wait"):
        assert page.locator(f"[name={name}]").first.is_disabled()
    server.replies = [[delta(answer="7"), *ended(used=0, sampled=0, forced=0, closed_by="none")]]
    asked(page)
    assert not [field for field in server.asked[-1] if "think" in field]
    assert facts(page)["Closed by"] == "nobody: there was no thinking to close"


def test_without_scripts_the_page_says_what_works(chromium: Browser, server: PageServer) -> None:
    watch = Watch(chromium, java_script_enabled=False)
    page = watch.open(server.address)
    assert "/v1/chat/completions" in page.locator("noscript").inner_text()
    watch.context.close()
