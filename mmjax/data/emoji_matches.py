"""Which icon of a set draws which concept, where names alone do not say so; looked up by eye on contact sheets."""

FLAT = ()  # artists whose atlas is stored without loss


def _table(text: str) -> dict[str, str]:
    """ "name = icon; name = icon": CLDR name -> icon, nothing after the sign = the set has no drawing of it."""
    pairs = (entry.split("=") for entry in text.split(";") if entry.strip())
    return {" ".join(name.split()): icon.strip() for name, icon in pairs}


NOTO_V1 = _table(
    """
    man in tuxedo=; cricket=; tear-off calendar=; UP! button=up-exclamation-button;
    red question mark=question-mark; red exclamation mark=exclamation-mark
    """
)
EMOJIONE = _table(
    """
    man in tuxedo=; cricket=; UP! button=up-text-button; smiling cat with heart-eyes=smiling-cat-face-with-heart-eyes;
    heart exclamation=heavy-heart-exclamation; person: blond hair=blond-haired-person; person with skullcap=man-with-chinese-cap;
    A button (blood type)=a-button; B button (blood type)=b-button; AB button (blood type)=ab-button;
    O button (blood type)=o-button; red question mark=question-mark; red exclamation mark=exclamation-mark
    """
)
FXEMOJI = _table(
    """
    smiling face with sunglasses=; dog=dogside; cat=catside; tiger=tigerside; pig=pigside; mouse=mouseside;
    spouting whale=spurtingwhale; sun behind cloud=; sun behind large cloud=sunbehindcloud
    """
)
