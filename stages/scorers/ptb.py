"""The tokens that captions are scored on: Stanford's PTBTokenizer and coco-caption's punctuation list, without Java."""

from __future__ import annotations

import re

# What coco-caption drops after tokenising (pycocoevalcap/tokenizer/ptbtokenizer.py).
PUNCTUATION = frozenset(["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", *".?!,:;-", "--", "..."])

_APO = "['\u2019]"
_LETTER = r"[^\W\d_]"
_ALNUM = r"[^\W_]"
_ABBREVIATION = (
    "adj|adm|adv|al|ala|alex|apr|ariz|assn|assoc|asst|attys?|aug|ave|bhd|bldg|blvd|brig|bros|calif|capt|cf|cie|cmdr|"
    "co|col|colo|comdr|conn|corp|cos|cpl|ct|dak|dec|dept|det|drs?|elec|ens|esq|est|etc|ext|feb|fla|fri|ft|ga|gen|"
    "govs?|hon|inc|ind|insp|intl|invt|jan|jos|jr|jul|jun|kans?|ky|lieut|lt|ltd|maj|mar|md|mfg|mich|minn|mlle|mme|mo|"
    "mon|mont|mr|mrs|ms|msgr|mt|mtg|natl|neb|nev|nov|oct|okla|penn|pfc|ph|plc|pptes?|pptys?|pres|profs?|ptes?|ptys?|"
    "pvt|rd|reps?|rev|rt|sens?|sep|sept|seq|sfc|sgt|spc|sq|sr|st|ste|supts?|sys|tel|tenn|thu|thurs|treas|tue|tues|"
    "univ|va|vs|vt|wed|wisc?|wm|wyo|[a-z]"
)
_ABBREVIATION_IF_CAPITAL = (
    "A(?i:rk)|A(?i:z)|D(?i:el)|I(?i:ll)|L(?i:a)|M(?i:ass)|M(?i:iss)|O(?i:re)|P(?i:a)|T(?i:ex)|W(?i:ash)"
)
_ABBREVIATION_BEFORE_NUMBER = "art|ca|figs?|nos?|op|pp|prop"
_STARTER = (
    "A|About|According|Additionally|After|An|As|At|But|Earlier|He|Her|Here|However|If|In|It|Last|Many|More|Mr[.]|Ms[.]|"
    "Now|Once|One|Other|Our|She|Since|So|Some|Such|That|The|Their|Then|There|These|They|This|We|What|When|While|Yet|You"
)


def _rules() -> list[re.Pattern[str]]:
    abbreviation = rf"(?:(?i:{_ABBREVIATION})|{_ABBREVIATION_IF_CAPITAL})\."
    acronym = r"[A-Za-z](?:\.[A-Za-z])+\."
    number = r"[-+]?(?:\d*(?:[.:,]\d+)+|\d+)"
    return [
        re.compile(rule)
        for rule in (
            rf"((?i:can))(?i:not)(?!{_ALNUM})",
            rf"({_ALNUM}+(?:_{_ALNUM}+)*)",
            rf"([A-Za-z]*[A-MO-Za-mo-z])(?i:n{_APO}t)",
            rf"({_LETTER}{_ALNUM}*(?:\.{_LETTER}{_ALNUM}*)+)",
            rf"([A-Za-z])\.\s+(?:(?:{_STARTER})(?:\s|$)|<)",
            r"([A-Za-z])\.\s*$",
            rf"({abbreviation})",
            r"(\.{3,}|\.(?: \.){2,})",
            rf"({acronym})",
            rf"((?i:{_ABBREVIATION_BEFORE_NUMBER})\.)\s*\d",
            rf"({number})",
            rf"({_APO}(?i:s|m|d|re|ve|ll))(?!{_LETTER})",
            rf"((?i:n){_APO}(?i:t))",
            rf"({_APO}(?i:em|til|n(?!{_LETTER})|tis|twas))",
            rf"({_APO}\d0s)",
            rf"([A-Za-z0-9][A-Za-z0-9.,]*(?:-(?:{acronym}|[A-Za-z0-9]+))+)",
            rf"({_ALNUM}+(?:_{_ALNUM}+)*(?:-{_ALNUM}+(?:_{_ALNUM}+)*)+)",
            r"([A-Za-z0-9]+(?:-[A-Za-z]+){0,2}(?:/[A-Za-z0-9]+(?:-[A-Za-z]+){0,2}){1,2})",
            r"(\d{1,4}[- \u00a0]\d{1,4}/\d{1,4})",
            rf"((?i:[dlno]){_APO}{_LETTER}{{2,}})",
            rf"({_LETTER}+[aeiouyAEIOUY]{_APO}[aeiouAEIOU]{_LETTER}*)",
            rf"((?i:[dljy]){_APO})",
            r"([A-Z]+(?:&[A-Z]+)+)",
            r"(\d{1,2}[-/]\d{1,2}[-/]\d{2,4})",
            r"(\d+\.)[,:;]",
            rf"({_APO}{{2}}|__+|-_-)",
            rf"({_APO}n{_APO})",
            r"(-+|[!?]+)",
        )
    ]


_RULES = _rules()
_PLAIN = re.compile(r"[A-Za-z]+(?=[ ]|$)")
_SPLIT = {
    "cannot": "can not",
    "gonna": "gon na",
    "gotta": "got ta",
    "lemme": "lem me",
    "gimme": "gim me",
    "wanna": "wan na",
}


def tokenize(caption: str) -> list[str]:
    tokens: list[str] = []
    position = 0
    while position < len(caption):
        char = caption[position]
        if char.isspace():
            position += 1
            continue
        if plain := _PLAIN.match(caption, position):
            word = plain[0].lower()
            tokens += _SPLIT.get(word, word).split()
            position = plain.end()
            continue
        best, priority = char, 0
        for rule in _RULES:
            found = rule.match(caption, position)
            if found and found.end() - position > priority:
                best, priority = found[1], found.end() - position
        position += len(best)
        best = best.replace(" ", "\u00a0")
        tokens.append(
            "..."
            if not best.strip(".\u00a0")
            else "--"
            if best in ("---", "----")
            else _BRACKETS.get(best, best.lower())
        )
    return [token for token in tokens if token not in PUNCTUATION]


_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-", '"': "''"}
