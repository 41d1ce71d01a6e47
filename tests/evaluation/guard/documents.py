"""Whole papers of a town hall with known personal data in them: letters, forms, minutes, tables, mails, notes of a call.

Written as such papers look, and not around what the detectors know; the numbers in them come in many notations. What
stands in `CLEAN_DOCUMENTS` holds nothing that may be reported, with all the numbers that such papers are full of.
"""

import random
from collections.abc import Callable, Iterator
from typing import Final

from tests.evaluation.guard.samples import Sample, filled

DOCUMENTS: Final = (
    """見福第４５６号
令和８年９月１０日

<name>　様

見本町長

　　　介護保険負担限度額認定の更新について（お知らせ）

　日頃より本町の高齢者福祉行政にご理解を賜り、厚くお礼申し上げます。
　さて、あなたの被保険者証（被保険者番号　<insured>）に係る負担限度額認定は、令和８年９月３０日で有効期限が切れます。引き続き利用されるときは、同封の申請書に必要事項を記入し、９月２５日までに福祉課介護保険係へ提出してください。

記
１　提出書類　申請書、同意書、通帳の写し（見本銀行川西支店　普通　<bank_account>）
２　連絡先　日中に連絡のつく電話番号（お届けでは<phone>）を申請書に書いてください。
""",
    """保育所等利用申込書（兼）教育・保育給付認定申請書

申込年月日　令和8年11月2日
┌ 保護者
　ふりがな　省略
　氏名　　　<name>
　生年月日　<birthday>
　現住所　　<address>
　電話（自宅）　<phone>
　電話（携帯）　<phone>
　個人番号　<my_number>
├ 児童
　氏名　　　<name>　（男・女）
　生年月日　<birthday>
└ 希望する施設　第１希望　見本こども園　第２希望　川西保育所
保育を必要とする理由　就労（週５日、８時３０分～１７時１５分）
""",
    """件名: 【至急】住民からの問い合わせについて
差出人: 住民課窓口係
宛先: 福祉課

お疲れさまです。住民課です。
先ほど、<name>様（<address>）から電話がありました。
世帯分離の届を出したところ、国保の資格確認書が二通届いたとのことです。
折り返し先は <phone>、メールなら <email> を希望されています。
生年月日は<birthday>、住民票コードは <resident_code> で確認済みです。
お手数ですが本日中にご対応をお願いします。
""",
    """受付番号,氏名,ふりがな,生年月日,住所,電話番号,備考
1,<name>,,<birthday>,<address>,<phone>,初回
2,<name>,,<birthday>,<address>,<phone>,
3,<name>,,<birthday>,<address>,<phone>,再申請
4,<name>,,<birthday>,<address>,<phone>,口座不備
""",
    """電話記録票
日時　令和８年１１月５日（木）午後２時１５分
相手方　<name>さん（町内在住）
内容　滞納している町税の分納について。先月までは毎月２万円ずつ納めていたが、勤務先の都合で１２月分から１万円にしたいとの申出。口座振替は見本銀行川西支店　普通　<bank_account>からで変更なし。
　勤め先の電話は教えられないとのことなので、今後も<phone>へ連絡する。
対応　納税相談の日を１１月１２日午前１０時とした。
""",
    """要保護児童対策地域協議会　個別ケース検討会議　会議録（抜粋）
日時：令和８年１０月１９日　１３：３０～１５：００
場所：役場３階　第２会議室
１　対象　<name>（<birthday>生）ほか１名
２　経過　９月２８日、小学校から欠席が続いているとの連絡。１０月２日に家庭訪問。母の<name>は<matter>のため日中起きられず、祖母が食事を用意している。
３　方針　保健師が週１回訪問する。緊急のときは祖母（<phone>）に連絡する。
""",
    """戸籍届書の受理について、次のとおり照会します。
届出人は<name>、本籍は<address>です。届書に添えられた旅券の番号は<passport>、在留カードは<residence_card>でした。運転免許証（<driving_licence>）による本人確認は済んでいます。
なお、届出人の連絡先は<phone>です。
""",
    """ふるさと納税の返礼品に関する苦情
　寄附者　<name>　様
　住　所　〒252-0000　<address>
　電　話　<phone>
　決　済　クレジットカード（<card_number>）
　内　容　届いた米の袋が破れていた。写真は <email> から送信済み。
　対　応　事業者に代わりの品の発送を依頼した。
""",
    """【国保】資格喪失後受診に伴う医療費の返還請求
対象者：<name>
記号番号：<insurance_number>
喪失日：令和8年4月1日　受診日：令和8年4月14日
基礎年金番号：<pension_number>　（厚生年金加入日の確認のため）
返還額：38,420円
納付書は<address>あてに送付する。
""",
    """生活相談メモ
来所者：<name>（<birthday>生、単身）
<matter>があり、この半年は働けていないとのこと。家賃は３か月分の滞納。
預金は見本銀行川西支店　普通　<bank_account>に数千円。
次回は１１月２０日。本人の携帯 <phone>。
""",
    """Subject: Re: 会場の件
<name>です。先日はありがとうございました。
講師謝金の源泉徴収のため、マイナンバーをお送りします。
<my_number>
振込先は見本銀行川西支店　普通　<bank_account>、名義は本人です。
何かあれば <phone> または <email> までお願いします。
""",
    """児童手当　現況確認リスト
世帯主　<name>　／　児童　<name>（<birthday>）
個人番号（受給者）<my_number>
支払口座　見本銀行川西支店　普通　<bank_account>
転入前の住所　<address>
""",
    """窓口での聞き取り（要約してください）
お客様は<name>様、<address>にお住まい。お父様の<name>様が先月亡くなり、相続人代表者指定届を出したい。連絡は<phone>へ。
""",
    """災害時避難行動要支援者名簿（川西地区・抄）
| 番号 | 氏名 | 生年月日 | 住所 | 電話 | 支援の内容 |
|---|---|---|---|---|---|
| 1 | <name> | <birthday> | <address> | <phone> | 車いす |
| 2 | <name> | <birthday> | <address> | <phone> | 服の着替え |
| 3 | <name> | <birthday> | <address> | <phone> | 声かけ |
""",
)  # fmt: skip

CLEAN_DOCUMENTS: Final = (
    """見総第１２３号
令和８年１０月１日
各課長　様
総務課長
　　　令和９年度当初予算の編成について（通知）
　このことについて、別紙要領により編成しますので、１０月３１日（土）までに予算要求書を提出してください。
　なお、経常経費は前年度当初予算額の９８％以内、投資的経費は総合計画の実施計画に掲げる額を上限とします。
記
１　歳入　町税は前年度比１．２％増の１２億３，４５６万７千円を見込む。
２　歳出　款２総務費、項１総務管理費、目５財産管理費の見直しを行うこと。
３　問合せ　財政係（内線２１３、２１４）
""",
    """第４回見本町議会定例会　会議録（第２日）
午前１０時００分開議
○議長　ただいまの出席議員は１２人です。定足数に達していますので、会議を開きます。
　日程第１、議案第４５号から議案第５２号までの８件を一括して議題とします。
○総務課長　議案第４５号は、見本町職員の給与に関する条例の一部を改正する条例です。改正の内容は、期末手当の支給割合を１００分の１２０から１００分の１２２．５に改めるものです。
○議長　質疑はありませんか。（「なし」の声あり）
""",
    """入札公告
次のとおり一般競争入札に付します。
工事名　町道川西１号線舗装補修工事（Ｒ８－１２）
工事場所　見本町川西地内
工期　契約の日から令和９年３月２６日まで
予定価格　１２，３４５，０００円（税抜き）
参加資格　建設業許可（般－３）第１２３４５号など、同種工事の実績があること
質問の期間　令和８年１１月９日午前９時から１１月１３日午後５時まで
問合せ　建設課管理係（電話　０１２０－９５－０１７８）
""",
    """広報見本　１１月号　原稿
■秋の火災予防運動　１１月９日（月）～１５日（日）
　寝室など１０か所に住宅用火災警報器を付けましょう。交換の目安は１０年です。
■町民文化祭　作品の部は１４日・１５日の午前９時～午後４時、芸能の部は２２日の午後１時開演。入場無料。
■人の動き（１０月１日現在）　人口１２，３４５人（前月比－１２）　男６，０１２人　女６，３３３人　世帯数５，２１０
■粗大ごみの日　第２・第４水曜日。１回５点まで、１点５００円の処理券を貼ってください。
""",
    """年度,区分,歳入,歳出,差引
令和5,一般会計,5678901234,5543210987,135690247
令和6,一般会計,5789012345,5654321098,134691247
令和7,国民健康保険,1234567890,1200000000,34567890
""",
    """システム障害の報告（第２報）
発生　2026-11-04 08:52:10　復旧　2026-11-04 10:31:45
影響　証明書のコンビニ交付（約120件）
原因　データベースの接続数が上限（max_connections=200）に達した。10.20.30.40のサーバーを再起動。
対策　接続数の監視を追加。チケット番号 INC-20261104-0017、変更管理 CHG0012345
""",
    """見本町公共施設等総合管理計画（素案）に関する意見募集の結果
募集期間　令和８年８月３日から９月２日まで（３１日間）
提出件数　１４件（電子メール８件、郵送４件、持参２件）
意見と町の考え方
１　施設の統廃合は、地区ごとの人口の見通しを示してから進めてほしい。→ 第３章に、令和２２年（２０４０年）までの推計を加えます。
２　学校の跡地は、民間の力も借りてほしい。→ ご意見のとおり、サウンディング型市場調査を行います。
""",
    """特定健診・がん検診のご案内
対象　４０歳から７４歳までの国民健康保険に加入している人
期間　６月１日から１１月３０日まで　費用　無料（胃カメラは３，０００円）
持ち物　受診券、マイナ保険証または資格確認書
申込み　町のホームページ（https://www.town.example.lg.jp/kenshin/2026/）または健康係の窓口
""",
)  # fmt: skip

_KANJI: Final = str.maketrans("0123456789", "〇一二三四五六七八九")
_FULL: Final = str.maketrans("0123456789-()", "０１２３４５６７８９－（）")
NOTATIONS: Final[dict[str, Callable[[str, random.Random], str]]] = {
    "as it is": lambda value, rng: value,
    "full width": lambda value, rng: value.translate(_FULL),
    "other hyphens": lambda value, rng: value.replace("-", rng.choice("‐‑–—―−ー～")),
    "kanji digits": lambda value, rng: value.translate(_KANJI),
    "spaces for hyphens": lambda value, rng: value.replace("-", rng.choice((" ", "　"))),
    "unseen signs": lambda value, rng: "".join(
        c + (rng.choice("\u200b\u2060\ufeff") if rng.random() < 0.3 else "") for c in value
    ),
}
# Of what is a number with signs in it, and may be written in any of these ways.
_NOTED: Final = frozenset({"my_number", "phone", "card_number", "driving_licence", "resident_code"})


def documents(seed: int, rounds: int) -> Iterator[tuple[str, Sample]]:
    """(notation, paper): every paper in every notation, `rounds` times with other values; then what is clean."""
    rng = random.Random(seed)
    for _ in range(rounds):
        for notation, write in NOTATIONS.items():
            for template in DOCUMENTS:
                yield (
                    notation,
                    filled(template, rng, lambda kind, value, w=write: w(value, rng) if kind in _NOTED else value),
                )  # type: ignore[misc]  # bound here
    for text in CLEAN_DOCUMENTS:
        yield "as it is", Sample(text, ())
