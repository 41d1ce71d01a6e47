"""Invented texts of a town hall with known personal data in them, written without a look at the detectors.

A template names what goes into it: `{phone}` is one invented telephone number, and so on. What stands in `CLEAN` holds
nothing that may be reported. The numbers are made here, by the published rules, with a random source of their own.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

SURNAMES: Final = (
    "佐藤",
    "鈴木",
    "高橋",
    "田中",
    "伊藤",
    "渡辺",
    "山本",
    "中村",
    "小林",
    "加藤",
    "吉田",
    "山田",
    "佐々木",
    "山口",
    "松本",
    "井上",
    "木村",
    "林",
    "斎藤",
    "清水",
    "山崎",
    "池田",
    "阿部",
    "橋本",
    "森",
    "石川",
    "前田",
    "藤田",
    "後藤",
    "小川",
    "岡田",
    "長谷川",
    "村上",
    "近藤",
    "石井",
    "坂本",
    "遠藤",
    "青木",
    "藤井",
    "西村",
    "福田",
    "太田",
    "三浦",
    "藤原",
    "岡本",
    "松田",
    "中川",
    "中野",
)
GIVEN: Final = (
    "翔太",
    "健太",
    "大輔",
    "拓也",
    "直樹",
    "達也",
    "誠",
    "浩",
    "隆",
    "茂",
    "洋子",
    "恵子",
    "幸子",
    "和子",
    "由美",
    "真由美",
    "美咲",
    "彩",
    "愛",
    "舞",
    "陽菜",
    "結衣",
    "葵",
    "美穂",
    "智子",
    "裕子",
    "太郎",
    "一郎",
    "次郎",
    "花子",
    "健一",
    "正樹",
    "雅人",
    "和也",
    "千尋",
    "麻衣",
    "優子",
    "久美子",
    "明美",
    "典子",
)
PLACES: Final = (
    ("神奈川県横須賀市", "小川町"), ("東京都新宿区", "西新宿"), ("北海道札幌市中央区", "北一条西"), ("埼玉県戸田市", "上戸田"),
    ("静岡県湖西市", "吉美"), ("福岡県那珂川市", "西隈"), ("青森県上北郡おいらせ町", "中下田"), ("長野県南佐久郡川上村", "大深山"),
    ("大分県別府市", "上野口町"), ("茨城県つくば市", "研究学園"), ("宮崎県宮崎市", "橘通西"), ("神奈川県茅ヶ崎市", "茅ヶ崎"),
)  # fmt: skip


def _digits(rng: random.Random, count: int) -> str:
    return "".join(rng.choice("0123456789") for _ in range(count))


def _mod11(body: str) -> int:
    weights = (6, 5, 4, 3, 2, 7, 6, 5, 4, 3, 2)[-len(body) :]
    return sum(int(d) * w for d, w in zip(body, weights, strict=True)) % 11


def _luhn(body: str) -> str:
    total = 0
    for i, d in enumerate(reversed(body)):
        n = int(d) * (1 if i % 2 else 2)
        total += n // 10 + n % 10
    return str((10 - total % 10) % 10)


def my_number(rng: random.Random) -> str:
    body = _digits(rng, 11)
    r = _mod11(body)
    text = body + str(0 if r <= 1 else 11 - r)
    return rng.choice((text, f"{text[:4]} {text[4:8]} {text[8:]}", f"{text[:4]}-{text[4:8]}-{text[8:]}"))


def resident_code(rng: random.Random) -> str:
    body = _digits(rng, 10)
    r = _mod11(body)
    return body + str(0 if r <= 1 else 11 - r)


def licence(rng: random.Random) -> str:
    body = rng.choice(("30", "45", "10", "62", "97")) + _digits(rng, 8)
    r = _mod11(body)
    return f"{body}{(11 - r) % 10}{rng.randint(0, 3)}"


def card(rng: random.Random) -> str:
    # Brands and lengths: most have sixteen digits.
    first, size = rng.choice(
        (("4", 16), ("52", 16), ("3530", 16), ("62", 16), ("6011", 16), ("37", 15), ("36", 14), ("62", 19))
    )
    body = (first + _digits(rng, size))[: size - 1]
    text = body + _luhn(body)
    if size != 16:
        return text
    return rng.choice(
        (text, " ".join(text[i : i + 4] for i in range(0, 16, 4)), "-".join(text[i : i + 4] for i in range(0, 16, 4)))
    )


def phone(rng: random.Random) -> str:
    mobile = rng.choice(("090", "080", "070", "060"))
    # Never nought: 0800 is the free line.
    local = f"{rng.randint(1, 9)}{_digits(rng, 3)}"
    return rng.choice((
        f"{mobile}-{local}-{_digits(rng, 4)}", f"{mobile}{local}{_digits(rng, 4)}", f"03-{rng.randint(2, 9)}{_digits(rng, 3)}-{_digits(rng, 4)}",
        f"046-{rng.randint(2, 9)}{_digits(rng, 2)}-{_digits(rng, 4)}", f"0467({rng.randint(2, 9)}{_digits(rng, 1)}){_digits(rng, 4)}",
    ))  # fmt: skip


def email(rng: random.Random) -> str:
    name = rng.choice(("taro", "hanako.sato", "k_suzuki", "y-tanaka", "m.kobayashi1970"))
    return f"{name}{rng.randint(1, 99)}@{rng.choice(('example.com', 'mail.example.ne.jp', 'example.co.jp'))}"


def passport(rng: random.Random) -> str:
    return rng.choice("TM") + rng.choice("KRSZ") + _digits(rng, 7)


def residence_card(rng: random.Random) -> str:
    return f"{rng.choice('ABU')}{rng.choice('BHK')}{_digits(rng, 8)}{rng.choice('CDE')}{rng.choice('AKE')}"


def pension(rng: random.Random) -> str:
    return f"{rng.randint(1000, 9899)}-{_digits(rng, 6)}"


def account(rng: random.Random) -> str:
    return _digits(rng, 7)


def name(rng: random.Random) -> str:
    return rng.choice(SURNAMES) + rng.choice(("", "", " ", "　")) + rng.choice(GIVEN)


def surname(rng: random.Random) -> str:
    return rng.choice(SURNAMES)


def _kanji(number: int) -> str:
    ones = "〇一二三四五六七八九"
    return (
        ones[number]
        if number < 10
        else ("" if number < 20 else ones[number // 10]) + "十" + (ones[number % 10] if number % 10 else "")
    )


def birthday(rng: random.Random) -> str:
    month, day = rng.randint(1, 12), rng.randint(1, 28)
    return rng.choice((
        f"昭和{rng.randint(1, 63)}年{month}月{day}日", f"平成{rng.randint(1, 30)}年{month}月{day}日", f"{rng.randint(1930, 2020)}年{month}月{day}日",
        f"S{rng.randint(10, 63)}.{month}.{day}", f"{rng.randint(1940, 2020)}/{month:02}/{day:02}",
        f"昭和{_kanji(rng.randint(10, 63))}年{_kanji(month)}月{_kanji(day)}日",
    ))  # fmt: skip


def address(rng: random.Random) -> str:
    place, quarter = rng.choice(PLACES)
    a, b, c = rng.randint(1, 9), rng.randint(1, 40), rng.randint(1, 20)
    return (
        place
        + quarter
        + rng.choice((f"{a}丁目{b}番{c}号", f"{b}番地", f"{a}-{b}-{c}", f"{b}番地の{c}", f"{a}丁目{b}-{c}"))
    )


def insurance(rng: random.Random) -> str:
    return f"記号 {rng.randint(10, 999)}-{rng.randint(1, 99)} 番号 {rng.randint(1, 99999)}"


def insured(rng: random.Random) -> str:
    return f"000{_digits(rng, 7)}"


def matter(rng: random.Random) -> str:
    """What may not be said of somebody without care."""
    return rng.choice((
        "統合失調症", "うつ病", "胃がん", "糖尿病", "認知症", "てんかん", "アルコール依存症", "療育手帳", "身体障害者手帳2級", "発達障害", "生活保護",
        "前科", "執行猶予", "保護観察", "性被害", "DV被害", "人工透析",
    ))  # fmt: skip


# What a slot is called where its kind has another name.
KINDS: Final = {"surname": "name", "matter": "sensitive", "insured": "insurance_number"}
MAKERS: Final[dict[str, Callable[[random.Random], str]]] = {
    "my_number": my_number, "resident_code": resident_code, "driving_licence": licence, "card_number": card, "phone": phone,
    "email": email, "passport": passport, "residence_card": residence_card, "pension_number": pension, "bank_account": account,
    "name": name, "surname": surname, "matter": matter, "birthday": birthday, "address": address, "insurance_number": insurance,
    "insured": insured,
}  # fmt: skip

# Slots are written <kind>; <surname> is a name that counts only where a person is plainly meant.
TEXTS: Final = (
    "申請者のマイナンバーは<my_number>です。写しを添付しました。",
    "個人番号：<my_number>\n氏名：<name>\n生年月日：<birthday>",
    "番号確認書類の番号 <my_number> を転記してください。",
    "世帯主 <name>（個人番号 <my_number>）と長女の分をまとめて提出。",
    "<my_number>\nこの番号を入力しても先に進めないとの問合せ。",
    "源泉徴収票を作るので、<name>さんの番号 <my_number> を登録しておいて。",
    "住民票コードは<resident_code>と記載されている。",
    "本人から住民票コード（<resident_code>）の変更請求があった。",
    "住民票コード\n<resident_code>",
    "年金の件。基礎年金番号<pension_number>、<birthday>生。",
    "基礎年金番号：<pension_number>",
    "介護保険の被保険者番号は<insured>、要介護2。",
    "免許証の番号は第<driving_licence>号、有効期限は令和10年4月1日まで。",
    "本人確認書類：運転免許証（番号 <driving_licence>）",
    "運転免許証番号\t<driving_licence>",
    "支払はカード<card_number>で行ったと言っている。",
    "クレジットカード番号 <card_number> 有効期限 12/29",
    "誤ってカード番号（<card_number>）をメールに書いて送ってきた。",
    "パスポートの番号は<passport>、発行は令和5年。",
    "旅券番号：<passport>",
    "在留カード番号 <residence_card> の<name>さん",
    "在留カードの写し（<residence_card>）を確認した。",
    "還付金の振込先：見本銀行 本店 普通 <bank_account> 名義 <name>",
    "口座番号は<bank_account>（見本信用金庫 港支店 当座）です。",
    "見本農協 西支店 普通預金 口座番号<bank_account>",
    "国民健康保険の<insurance_number>を控えた。",
    "健康保険証 <insurance_number>（本人）",
    "資格確認書に<insurance_number>とある。",
    "連絡先は<phone>（日中）です。",
    "折り返し<phone>へお電話ください。",
    "TEL <phone> / FAX <phone>",
    "相談者の携帯：<phone>、夜間のみ",
    "<name>様から電話あり。番号は<phone>。",
    "メールは<email>までお願いします。",
    "送信元：<email>",
    "問い合わせ者 <name> <<email>>",
    "住所は<address>、電話は<phone>です。",
    "〒238-8550\n<address>\n<name> 様",
    "転居先：<address>",
    "<address>に住む<name>さんからの苦情について、回答案を作ってください。",
    "現場は<address>の隣の空き家。所有者は<name>氏。",
    "生年月日は<birthday>です。",
    "<name>（<birthday>生まれ）の保育の必要性の認定",
    "誕生日 <birthday>、男、3歳児クラス",
    "<name>さん（<birthday>生）の要介護認定の更新について",
    "<surname>さんが窓口に来て、書類を受け取った。",
    "<surname>様からのご意見にお答えします。",
    "担当は福祉課の<name>です。",
    "出席者：<name>、<name>、<name>",
    "氏名 <name>　住所 <address>　電話 <phone>",
    "申請者 <name>\n住所 <address>\n生年月日 <birthday>\n電話番号 <phone>\nメール <email>",
    "被相談者：<name>。夫の<name>からどなられるとの訴え。",
    "<name>さんは<matter>のため、来月の面談は自宅で行う。",
    "氏名：<name>\n状況：<matter>\n今後：家族と話し合う",
    "<birthday>生、<matter>あり。単身で暮らす。",
    "主訴 <matter>。<address>の自宅に訪問した。",
    "<name>様の<matter>の件で、ご家族から問合せがあった。",
    "受付簿\n<name>,<phone>,<email>\n<name>,<phone>,<email>",
    "保護者の<name>です。子の<name>の入園について伺います。",
    "滞納者リスト：<name> <address> <phone>",
    "<name>殿\n督促状\n納期限を過ぎても納付がありません。",
)

CLEAN: Final = (
    "認知症の人と家族を支える町の取組を、広報紙の1ページにまとめてください。",
    "生活保護の申請手続を、やさしい日本語で説明してください。",
    "障害者差別解消法の研修の資料を、30分で話せる長さにする。",
    "がん検診の受診率を上げるための、はがきの文案を作って。",
    "入院のときに持っていくものの一覧を、2ページで作ってください。",
    "犯罪被害者等支援条例の素案に、用語の定義を加える。",
    "令和8年度一般会計予算は123億4567万8千円で、前年度より2.5%増えました。",
    "法人番号 7000012050002 の事業者から届出がありました。",
    "登録番号T7000012050002の適格請求書を受け取った。",
    "東京都（法人番号8000020130001）、千代田区（8000020131016）",
    "総第123号 令和8年4月1日付けの通知のとおり",
    "文書番号 2026-0401-1234 を引用してください。",
    "団体コードは142018、都道府県コードは14です。",
    "受付日時 202604011230、更新 20260402",
    "商品コード 4901234567894 を10個発注する。",
    "注文番号 622848001234567894 の納品書が届いた。",
    "追跡番号 6228-4800-1234-5678-903 の荷物を受け取った。",
    "請求書（登録番号 T4000012050005）の控えを残す。",
    "記録の時刻は20260401123045123である。",
    "コールセンターは0120-95-0178、または0570-783-578です。",
    "緊急のときは119番、警察は110番、消費生活相談は188へ。",
    "〒100-0001 の郵便物の区分について",
    "会議は午前10時30分から第2会議室で行います。",
    "第3条第2項第1号の規定により、次のとおり公告する。",
    "本町一丁目の公園の遊具を点検しました。",
    "小川町の自治会に回覧を依頼する。",
    "森林の整備と林業の振興について、山の日に合わせて広報する。",
    "中川の堤防工事（延長1,250m、幅員4.5m）を発注する。",
    "市民課、税務課、福祉課の3課で打合せを行う。",
    "お客様各位　日頃より町政にご協力いただきありがとうございます。",
    "マイナンバーカードの申請方法を、やさしい日本語で説明してください。",
    "マイナンバー制度の利用範囲について、説明会の案内文を作って。",
    "個人番号利用事務の手引を改訂した（令和8年3月、全123ページ）。",
    "運転免許証を自主返納した人に、バス券12,000円分を配る事業です。",
    "口座振替の申込みは、納期限の30日前までにお願いします。",
    "国民健康保険税の税率を7.36%に改める条例案",
    "電話番号の書き方を統一してください（市外局番から書く）。",
    "メールアドレスの登録をお願いする文を作って。",
    "問い合わせは soumu@town.example.lg.jp へ。",
    "統計表番号 0003412345、調査年 2020、集計単位 1234567",
    "物品の管理番号 123456789018 を台帳に記載する。",
    "予約番号 9832-0567-3214 の会議室の利用",
    "URLは https://www.example.lg.jp/soshiki/1234567890123/index.html です。",
    "IPアドレス 192.168.100.200、MACは 00:1A:2B:3C:4D:5E",
    "伝票番号 1234-5678-9018 の荷物が届いていない。",
    "人口は45,678人（男22,345人、女23,333人）、世帯数は19,876世帯。",
    "契約金額 123,456,789,018円（消費税を含む。）",
    "事業期間：2026年4月1日から2027年3月31日まで",
    "秘密文書の管理について、規程の案を作ってください。",
    "機密性3Aと3Bの違いを、新任職員に説明する資料を作る。",
    "生年月日の記入欄を大きくしてほしいという意見がありました。",
    "氏名、住所、電話番号を記入のうえ、窓口に提出してください。",
    "平成30年7月豪雨の記録をまとめる。",
    "生活保護の相談は令和8年4月1日から2階の窓口で行います。",
    "学校の創立記念日は昭和45年11月3日です。",
    "1234567890123456 は試験用の数字です。",
    "第12345678号議案から第12345690号議案まで",
    "2026-04-01 09:00:00.000 INFO started pid=12345 port=8080",
    "工事番号 R8-0012、図面 A1-123-4567",
    "面積 1,234.56㎡、地番は現地で確認する。",
)


@dataclass(frozen=True, slots=True)
class Sample:
    """A text and what is in it: (kind, start, end)."""

    text: str
    truth: tuple[tuple[str, int, int], ...]


def samples(seed: int, rounds: int) -> Iterator[Sample]:
    """Every template `rounds` times with other values, then what is clean."""
    rng = random.Random(seed)
    for _ in range(rounds):
        for template in TEXTS:
            yield filled(template, rng)
    for text in CLEAN:
        yield Sample(text, ())


def filled(template: str, rng: random.Random, write: Callable[[str, str], str] = lambda kind, value: value) -> Sample:
    """A template with values in its slots. write: how a value of a kind is written down."""
    text = ""
    truth = []
    rest = template
    while rest:
        slot, maker = min(((rest.find(f"<{kind}>"), kind) for kind in MAKERS if f"<{kind}>" in rest), default=(-1, ""))
        if slot < 0:
            break
        text += rest[:slot]
        value = write(maker, MAKERS[maker](rng))
        kind = KINDS.get(maker, maker)
        truth.append((kind, len(text), len(text) + len(value)))
        text += value
        rest = rest[slot + len(maker) + 2 :]
    return Sample(text + rest, tuple(truth))
