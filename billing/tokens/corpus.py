"""The texts on which a counter must agree with its reference before it is believed."""

from __future__ import annotations

import random
import unicodedata
from functools import cache

SEED = 20_261_101
RANDOM_TEXTS = 60
MIXED_TEXTS = 60

PROSE = (
    "The quick brown fox jumps over the lazy dog. It wasn't the dog's fault; they'd SHOUTED 'STOP' 1,234.50 times!\n",
    "Dr. O'Neill's e-mail <oneill@example.org> arrived at 09:41 on 2026-11-01 -- I'll answer it, won't I?\n\n\n",
    "L’été dernier, à Besançon, j’ai mangé des œufs brouillés ; ça n’était pas très cher : 12,50 €.",
    "Die Größe des Maßstabs übersteigt für gewöhnlich zwanzig Fuß. Äpfel, Öl und Übermut!",
    "El niño pidió más piñata… ¿y quién no? ¡Olé!",
    "Съешь же ещё этих мягких французских булок, да выпей чаю. 3,14 рубля — это немного.",
    "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία. Ο καιρός είναι καλός σήμερα.",
    "키스의 고유조건은 입술끼리 만나야 하고 특별한 기술은 필요치 않다. 요금은 토큰당 0.0002원입니다.",
    "대한민국은 민주공화국이다. 모든 권력은 국민으로부터 나온다 (헌법 제1조).",
    "いろはにほへと ちりぬるを。トークンを数えるのは難しいですか？はい、１２３円です。",
    "天地玄黃，宇宙洪荒。日月盈昃，辰宿列張。人工智能模型按令牌计费，每百万令牌２元。",
    "نص عربي قصير للتجربة، مع أرقام ١٢٣ وعلامات؟ نعم.",
    "דג סקרן שט בים מאוכזב ולפתע מצא חברה.",
    "हिन्दी में एक छोटा वाक्य, जिसमें संयुक्ताक्षर क्ष, त्र और ज्ञ हैं।",
    "ภาษาไทยไม่มีช่องว่างระหว่างคำ จึงแบ่งคำยาก",
    "Tiếng Việt có rất nhiều dấu thanh điệu: ngã, hỏi, nặng.",
    "İstanbul'da ısı 25°C'ydi; Iğdır'da ise −3.",
    "😀 👩‍👩‍👧‍👦 🇰🇷 👍🏽 ❤️‍🔥 text between 🤖🤖🤖 and after",
    "e\u0301 a\u0308 o\u0302\u0323 \u1112\u1161\u11ab\u1100\u1173\u11af n\u0303 \u0958 \u212b \u2126 ﬁ ①",
    "zero\u200bwidth\u200djoiner\ufeff and \u00a0no-break\u2003em\u3000wide\u2028line\u0085next",
    "<|im_start|>user\nIgnore <|endoftext|> and </s> [INST] <tool_call> <think>\n</think><|im_end|>",
)
CODE = (
    'def f(x: int) -> str:\n    """Say x."""\n    if x % 2 == 0:\n\t\treturn f"{x!r:>10}"\n    return str(x)[::-1]\n',
    "for (int i = 0; i < n; ++i) {\n    a[i] += b[i] * 0x1F; // add\n}\n\n\n/* end */\r\n"
    "#define MAX(a,b) ((a)>(b)?(a):(b))\r\n",
    '{"model":"tiny","messages":[{"role":"user","content":"Say \\"hi\\"\\n"}],'
    '"n":1,"temperature":0.70,"x":[1,22,333,4444]}',
    "SELECT id, sum(amount) FROM charge\nWHERE organization_id = $1 AND created_at >= '2026-11-01'\nGROUP BY 1;\n",
    "<html>\n  <body class='a b'>\n    <p>Don't &amp; won't</p>\n  </body>\n</html>\n",
    'let mut v: Vec<u8> = vec![0u8; 1 << 20]; // \'static\nprintln!("{:?}", &v[..16]);',
    "dGhlIHF1aWNrIGJyb3duIGZveA==QmFzZTY0IHRleHQgaXMgaGFyZA0K8Jf1b9c2e7a4d3f6e5b8a7c6d5e4f3a2b1c0",
    "https://example.org/a/b-c_d?e=f&g=%20h#i "
    "../../etc/passwd C:\\Users\\x\\y.txt user_name camelCaseName SCREAMING_CASE",
)
RUNS = (
    "",
    " ",
    "\n",
    "a",
    "a" * 600,
    "Z" * 301,
    "ab" * 250,
    "haha" * 100 + "!",
    " " * 257 + "x",
    "x" + " " * 100,
    "\n" * 65 + "y",
    "\r\n" * 33,
    "a \n b \n\n c\t\td \t \n e   \n   f",
    "\t" * 40 + "z" + "\t \t ",
    "=" * 200 + "-" * 199 + "*" * 7,
    "!?" * 90,
    "0" * 130 + "1234567890" * 9,
    "1 22 333 4444 55555 666666 7777777 １２３ ४५६ ½ ² Ⅷ",
    "가" * 150 + "나다라",
    "中" * 150 + "，" * 20 + "文",
    "\u0301" * 60,
    "\u200b" * 70 + "a\u200bb",
    "😀" * 80,
    "x y\u00a0z  \u00a0 w\u3000\u3000v",
)


@cache
def corpus() -> tuple[str, ...]:
    """Some two hundred texts, the same on every machine and in every run."""
    source = random.Random(SEED)  # noqa: S311 - must repeat, and guards nothing
    randomly = [_random_text(source) for _ in range(RANDOM_TEXTS)]
    mixed = [_mixed_text(source) for _ in range(MIXED_TEXTS)]
    return (*PROSE, *CODE, *RUNS, *randomly, *mixed)


def _random_text(source: random.Random) -> str:
    """Random characters of every block that Python's Unicode tables know.

    Newer characters are left out: the regular expression engines disagree on what they are, by their own versions.
    """
    ranges = ((0x20, 0x7F), (0xA0, 0x24F), (0x300, 0x1FFF), (0x2000, 0x33FF), (0x3400, 0xD7A3), (0xF900, 0x1FAFF))
    low, high = source.choice(ranges)
    characters = (chr(source.randint(low, high)) for _ in range(source.randint(5, 120)))
    return "".join(c for c in characters if unicodedata.category(c) not in ("Cn", "Cs", "Co"))


def _mixed_text(source: random.Random) -> str:
    """Fragments of the texts above in random order, with white space and digits in between."""
    fragments = []
    for _ in range(source.randint(2, 12)):
        text = source.choice((*PROSE, *CODE))
        start = source.randrange(len(text))
        fragments.append(text[start : start + source.randint(1, 25)])
        fragments.append(source.choice(("", " ", "  ", "\n", " \n", "\n\n ", "\t", "7", "42 ", "'s", "'LL ", "\u0301")))
    return "".join(fragments)
