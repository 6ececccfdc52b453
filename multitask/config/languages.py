"""Codes of languages: `korean`, `kor`, `ko-KR` and `KO` all mean `ko`."""

from functools import cache

import langcodes

from multitask.errors import suggest

NAMES = {
    "korean": "ko",
    "한국어": "ko",
    "kr": "ko",  # BCP 47 says Kanuri; who writes it means the country
    "english": "en",
    "영어": "en",
    "arabic": "ar",
    "chinese": "zh",
    "중국어": "zh",
    "cn": "zh",
    "dutch": "nl",
    "french": "fr",
    "german": "de",
    "hindi": "hi",
    "indonesian": "id",
    "italian": "it",
    "japanese": "ja",
    "일본어": "ja",
    "jp": "ja",
    "polish": "pl",
    "portuguese": "pt",
    "russian": "ru",
    "spanish": "es",
    "thai": "th",
    "turkish": "tr",
    "ukrainian": "uk",
    "vietnamese": "vi",
}


@cache
def language_code(name: str) -> str:
    """The shortest code of a language (ISO 639) from a BCP 47 tag or one of the names above.

    Raises ValueError, with the nearest name, for what is neither.
    """
    plain = name.strip().lower()
    if plain in NAMES:
        return NAMES[plain]
    try:
        tag = langcodes.get(plain)
    except ValueError:
        tag = None
    if tag is None or not tag.is_valid() or not tag.language:
        near = suggest(plain, {*NAMES, *NAMES.values()})
        codes = f"for instance {', '.join(sorted(set(NAMES.values())))}"
        raise ValueError(
            f"'{name}' is no language; expected a code such as ko or en, or a name; "
            f"{near if near.startswith('did') else codes}"
        )
    return tag.language
