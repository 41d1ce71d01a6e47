"""What the 見本 provider writes: rules over the conversation, never a model. Pure and deterministic."""

import re
import unicodedata
from typing import Any

import orjson

SAMPLE_NOTE = "（これは見本の答えです。AIは使っていません。）"
_MATERIAL = re.compile(r"《資料 (\w+) 開始 ([^》]*)》\n(.*?)\n《資料 \1 終わり》", re.DOTALL)
_FIELD = re.compile(r"^[ 　・*-]*([^\s：:［］]{1,12})\s*[：:]\s*(.+)$", re.MULTILINE)
_SENTENCE = re.compile(r"[^。！？\n]+[。！？]?")
_COMPUTED = "計算済み:\n"
_MARKS = re.compile(r"^《計算 \w+ (?:開始|終わり)》\n?", re.MULTILINE)


def answer(messages: list[dict[str, Any]], response_format: dict[str, Any] | None) -> str:
    """The text for the last question; JSON when a format asks for it."""
    question = last_text(messages, "user")
    if response_format and response_format.get("type") in ("json_schema", "json_object"):
        schema = (response_format.get("json_schema") or {}).get("schema") or {"type": "object"}
        return orjson.dumps(instance(schema, question, schema)).decode()
    if messages and messages[-1].get("role") == "tool":
        return f"{SAMPLE_NOTE}\n\n道具から返ってきた結果は次のとおりです。\n\n```\n{text_of(messages[-1])[:2000]}\n```"
    materials = [(m[2], m[3]) for m in _MATERIAL.finditer(question)]
    ask = _MATERIAL.sub("", question)
    ask, _, computed = ask.partition(_COMPUTED)
    return f"{SAMPLE_NOTE}\n\n{_body(ask.strip(), materials, _MARKS.sub('', computed).strip())}"


def _body(ask: str, materials: list[tuple[str, str]], computed: str) -> str:
    if computed:
        return f"表から計算した結果です。\n\n{computed}\n\n数字は計算した値をそのまま載せています。"
    if materials:
        return "\n\n".join(f"## {name}の要点\n\n{summary(text)}" for name, text in materials)
    fields = {k: v.strip() for k, v in _FIELD.findall(ask) if v.strip(" 　［］")}
    first = ask.splitlines()[0] if ask else ""
    if any(word in first for word in ("要約", "まとめ", "要点")) and len(ask) > 80:
        return f"## 要点\n\n{summary(ask.partition(chr(10))[2] or ask)}"
    if any(word in first for word in ("書き直", "言い換え", "やさしく", "分かりやすく")) and len(ask) > 30:
        return _rewritten(ask.partition("\n")[2].strip() or ask)
    if "表" in first and fields:
        return _table(fields)
    if any(word in first for word in ("返信", "メール", "回答文")):
        return _reply(fields)
    if fields or any(word in first for word in ("通知", "お知らせ", "案内", "あいさつ", "文書", "書いて", "作って")):
        return _notice(first, fields)
    return _about(ask)


def _notice(first: str, fields: dict[str, str]) -> str:
    subject = fields.get("件名") or fields.get("事業名") or _subject_of(first)
    lines = [f"# {subject}について（お知らせ）", "", f"{subject}を、次のとおりお知らせします。", ""]
    rest = {k: v for k, v in fields.items() if k not in ("件名", "宛先", "事業名")}
    if rest:
        lines += ["| 項目 | 内容 |", "| --- | --- |", *(f"| {k} | {_cell(v)} |" for k, v in rest.items()), ""]
    else:
        lines += [
            "1. 日時　［日時を書いてください］",
            "2. 場所　［場所を書いてください］",
            "3. 問合せ　［担当課・電話番号］",
            "",
        ]
    lines.append("詳しいことは、担当課にお問い合わせください。")
    if "宛先" in fields:
        lines.insert(0, f"{fields['宛先']}　様\n")
    return "\n".join(lines)


def _subject_of(first: str) -> str:
    text = re.sub(
        r"(の?(お知らせ|通知文?|案内文?|文書|文章|文)を?.*|を?(書いて|作って|作成して).*)$", "", first
    ).strip()
    return text[:40] or "お知らせ"


def _reply(fields: dict[str, str]) -> str:
    question = fields.get("質問", "お問い合わせの件")
    points = fields.get("伝えたいこと", "［伝えたいことを書いてください］")
    return (
        f"お問い合わせありがとうございます。\n\n「{question}」について、お答えします。\n\n{points}\n\n"
        "ご不明な点がありましたら、担当課までご連絡ください。"
    )


def _table(fields: dict[str, str]) -> str:
    rows = "\n".join(f"| {k} | {_cell(v)} |" for k, v in fields.items())
    return f"| 項目 | 内容 |\n| --- | --- |\n{rows}"


_PLAIN = {
    "下さい": "ください", "致します": "いたします", "及び": "と", "並びに": "と", "若しくは": "か", "又は": "または",
    "することができます": "できます", "行うこと": "すること", "お願い申し上げます": "お願いします",
    "ご高覧": "ご覧", "遅滞なく": "すぐに", "可及的速やかに": "できるだけ早く", "に関しまして": "について",
    "つきましては、": "", "実施いたします": "行います", "実施します": "行います",
}  # fmt: skip


def _rewritten(text: str) -> str:
    changed: list[tuple[str, str]] = []
    result = text
    for old, new in _PLAIN.items():
        if old in result:
            result = result.replace(old, new)
            changed.append((old, new or "（省く）"))
    rows = (
        "\n".join(f"| {old} | {new} |" for old, new in changed) or "| なし | 決まった言い換えは見つかりませんでした |"
    )
    return f"{result}\n\n## 直したところ\n\n| 元の言葉 | 直した言葉 |\n| --- | --- |\n{rows}"


def _about(ask: str) -> str:
    key = unicodedata.normalize("NFKC", ask).strip()[:60] or "ご質問"
    return (
        f"「{key}」を受け取りました。見本のため、内容を考えて答えることはできません。次のことは試せます。\n\n"
        "- 「件名：」「日時：」のように書くと、お知らせの形に整えます。\n"
        "- PDFやWordを付けると、要点を抜き出します。\n"
        "- ExcelやCSVを付けて「地区ごとの件数」のように聞くと、計算して表にします。\n"
        "- 「分かりやすく書き直して」と書いて、次の行から文章を貼ると、言い換えます。"
    )


def summary(text: str, *, sentences: int = 5) -> str:
    """The weightiest sentences in their order, as a list: dates, amounts and common words weigh."""
    found = [s.strip() for s in _SENTENCE.findall(text) if len(s.strip()) >= 6]
    if not found:
        return "読み取れた文がありません。"
    pieces = [{s[i : i + 2] for i in range(len(s) - 1)} for s in found]
    common: dict[str, int] = {}
    for piece in pieces:
        for gram in piece:
            common[gram] = common.get(gram, 0) + 1

    def weight(i: int) -> float:
        usual = sum(common[g] for g in pieces[i] if common[g] > 1) / (len(pieces[i]) or 1)
        figures = len(re.findall(r"[0-9０-９]+(?:年|月|日|時|円|人|件|％|%)", found[i]))
        return usual + 2 * figures + (2 if i == 0 else 0)

    best = sorted(sorted(range(len(found)), key=weight, reverse=True)[:sentences])
    return "\n".join(f"- {found[i][:160]}" for i in best)


def _cell(value: str) -> str:
    return value.replace("|", "｜").strip("［］ ")


def last_text(messages: list[dict[str, Any]], role: str) -> str:
    return next((text_of(m) for m in reversed(messages) if m.get("role") == role), "")


def text_of(message: dict[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return "\n".join(p.get("text") or "［画像］" for p in parts)


def tool_call(messages: list[dict[str, Any]], tools: object, choice: object) -> tuple[str, str] | None:
    """(name, arguments as JSON) when a tool must be called, or may be and its words occur in the question."""
    if not isinstance(tools, list) or not tools or choice == "none":
        return None
    forced = (choice.get("function") or {}).get("name") if isinstance(choice, dict) else None
    if messages and messages[-1].get("role") == "tool" and choice != "required" and not forced:
        return None
    question = last_text(messages, "user")
    for tool in tools:
        function = tool["function"]
        may = choice == "required" or _related(function, question)
        wanted = function["name"] == forced if forced else may
        if wanted:
            schema = function.get("parameters") or {"type": "object"}
            return function["name"], orjson.dumps(instance(schema, question, schema)).decode()
    return None


def _related(function: dict[str, Any], question: str) -> bool:
    words = re.findall(r"[a-z]{3,}|[一-龥ァ-ヶ]{2,}", f"{function['name']} {function.get('description', '')}".lower())
    return any(word in question.lower() for word in words)


def instance(schema: dict[str, Any], text: str, root: dict[str, Any], name: str = "", depth: int = 0) -> Any:
    """A value the schema allows, taken from the text where a field of that name stands in it."""
    if "$ref" in schema:
        target: Any = root
        for key in schema["$ref"].removeprefix("#/").split("/"):
            target = target.get(key, {})
        schema = target
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return next((v for v in schema["enum"] if isinstance(v, str) and v in text), schema["enum"][0])
    for union in ("anyOf", "oneOf"):
        if schema.get(union):
            return instance(schema[union][0], text, root, name, depth + 1)
    if schema.get("allOf"):
        merged: dict[str, Any] = {}
        for part in schema["allOf"]:
            merged |= part
        return instance(merged, text, root, name, depth + 1)
    kind = schema.get("type", "object" if "properties" in schema else "string")
    kind = kind[0] if isinstance(kind, list) else kind
    if kind == "object":
        properties = schema.get("properties", {})
        required = set(schema.get("required", properties))
        return {
            key: instance(sub, text, root, key, depth + 1)
            for key, sub in properties.items()
            if key in required or depth < 4
        }
    if kind == "array":
        count = max(schema.get("minItems", 0), 0 if depth > 4 else 1)
        return [instance(schema.get("items", {}), text, root, name, depth + 1) for _ in range(count)]
    if kind in ("integer", "number"):
        found = re.search(r"-?\d+", unicodedata.normalize("NFKC", text))
        low, high = schema.get("minimum", -(2**53)), schema.get("maximum", 2**53)
        return max(low, min(int(found[0]) if found else 0, high))
    if kind == "boolean":
        return "はい" in text or "true" in text.lower()
    if kind == "null":
        return None
    labels = [name, schema.get("title", ""), schema.get("description", "")]
    fields = dict(_FIELD.findall(text))
    value = next((fields[label].strip() for label in labels if label in fields), "") or text.strip().split("\n")[0]
    if schema.get("format") == "date":
        day = re.search(r"\d{4}-\d{2}-\d{2}", text)
        return day[0] if day else "2026-01-01"
    low, high = schema.get("minLength", 0), schema.get("maxLength", 200)
    return value[:high].ljust(low, "＿")
