"""An answer as HTML: safe, in the page's own outline, and the same whether it came at once or in pieces."""

import random

import pytest

from apps.sdk.ui.render import GrowingMarkdown, render_markdown, where_words

ANSWER = """### 地区別の整理

アンケートの128件を数えました。
続きの行です。

- 一
- 二

  二の続き
    1. a
    2. b

| 地区 | 回答数 |
|---|--:|
| 本町 | 42 |
| **合計** | 42 |

# 会議で決めること
前置き
---

```python
def f(x):

    return "<b>"
```

> 引用
> 続き

5. 五
6. 六

[名簿](https://example.jp/?q=1) ![図](https://example.jp/a.png) <script>alert(1)</script>

***

終わり"""


def grown(text: str, seed: int) -> tuple[str, int]:
    """What a page has after pieces of odd lengths, and how many characters were sent for it."""
    rng = random.Random(seed)
    answer, blocks, sent, at = GrowingMarkdown(), [], 0, 0
    while at < len(text):
        size = rng.choice((1, 2, 3, 7, 30))
        answer.add(text[at : at + size])
        at += size
        if rng.random() < 0.5 or at >= len(text):
            first, changed = answer.changed()
            blocks[first:] = changed
            sent += sum(map(len, changed))
    return "".join(blocks), sent


@pytest.mark.parametrize("seed", range(20))
def test_an_answer_in_pieces_reads_as_the_whole(seed: int) -> None:
    html, _ = grown(ANSWER, seed)
    assert html.replace("\n", "") == str(render_markdown(ANSWER)).replace("\n", "")


def test_a_long_answer_is_not_sent_over_and_over() -> None:
    long = "\n\n".join(f"段落{n}です。" * 8 for n in range(200))
    html, sent = grown(long, 1)
    assert sent < 8 * len(html)


def test_nothing_in_an_answer_leads_outside_or_runs() -> None:
    html = str(render_markdown(ANSWER))
    assert "<a" not in html
    assert "<img" not in html
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    assert "[名簿](https://example.jp/?q=1)" in html


def test_headings_start_below_the_pages_own_and_skip_no_level() -> None:
    html = str(render_markdown("### 一\n\n# 二\n\n#### 三\n\n###### 四\n\n## 五"))
    assert html.replace("\n", "") == "<h2>一</h2><h2>二</h2><h3>三</h3><h4>四</h4><h3>五</h3>"


def test_a_table_names_its_rows_and_sets_its_total_apart() -> None:
    html = str(render_markdown("| 地区 | 数 |\n|---|--:|\n| 北 | 1 |\n| 合計 | 1 |"))
    assert '<th scope="col">地区</th><th scope="col" class="k-right">数</th>' in html.replace("\n", "")
    assert '<th scope="row">北</th><td class="k-right">1</td>' in html.replace("\n", "")
    assert '<tr class="is-total">' in html


def test_only_a_wide_table_says_that_it_moves_sideways() -> None:
    narrow, wide = "| a | b |\n|---|---|\n| 1 | 2 |", "| a | b | c | d |\n|---|---|---|---|\n| 1 | 2 | 3 | 4 |"
    assert "横に動かすと" not in render_markdown(narrow)
    assert "横に動かすと" in render_markdown(wide)


def test_what_scrolls_can_be_reached_by_the_keyboard() -> None:
    html = str(render_markdown("```\nx\n```\n\n| a |\n|---|\n| 1 |"))
    assert html.count('tabindex="0"') == 2


@pytest.mark.parametrize(
    ("zone", "owner", "country", "words"),
    [
        ("onprem", "town", "JP", "町の設備で処理しました。庁外に出ていません。"),
        ("onprem", "shared", "JP", "共同の設備で処理しました。"),
        ("onprem", "", "", "庁内で処理しました。"),
        ("domestic", "vendor", "JP", "国内のサーバーで処理しました（日本の事業者）。"),
        ("domestic", "vendor", "US", "国内のサーバーで処理しました（米国の事業者）。"),
        ("domestic", "vendor", "", "国内のサーバーで処理しました。"),
        ("overseas", "vendor", "US", "海外のサーバーで処理しました（米国の事業者）。"),
        ("overseas", "vendor", "XX", "海外のサーバーで処理しました（外国の事業者）。"),
        ("", "", "", ""),
    ],
)
def test_where_an_answer_was_made_says_whose_machines_these_are(
    zone: str, owner: str, country: str, words: str
) -> None:
    assert where_words(zone, owner, country) == words
