"""Which icon of a set draws which concept, where names alone do not say so; looked up by eye on contact sheets."""


def _table(text: str) -> dict[str, str]:
    """ "name = icon; name = icon": CLDR name -> icon, nothing after the sign = the set has no drawing of it."""
    pairs = (entry.split("=") for entry in text.split(";") if entry.strip())
    return {" ".join(name.split()): icon.strip() for name, icon in pairs}


NOTO_V1 = _table(
    """
    man in tuxedo=; cricket=; water pistol=; tear-off calendar=; UP! button=up-exclamation-button;
    red question mark=question-mark; red exclamation mark=exclamation-mark
    """
)
EMOJIONE = _table(
    """
    man in tuxedo=; cricket=; water pistol=; UP! button=up-text-button;
    smiling cat with heart-eyes=smiling-cat-face-with-heart-eyes; heart exclamation=heavy-heart-exclamation;
    person: blond hair=blond-haired-person; person with skullcap=man-with-chinese-cap;
    A button (blood type)=a-button; B button (blood type)=b-button; AB button (blood type)=ab-button;
    O button (blood type)=o-button; red question mark=question-mark; red exclamation mark=exclamation-mark
    """
)
FXEMOJI = _table(
    """
    grinning face with big eyes=grinwide; grinning face with smiling eyes=grineyes;
    grinning squinting face=grinsquint; grinning face with sweat=grinsweat; face with tears of joy=grintears;
    slightly smiling face=smallsmile; winking face=winking; smiling face with smiling eyes=smileeyes;
    smiling face with halo=halo; kissing face with closed eyes=kissclosedeyes;
    kissing face with smiling eyes=kisseyes; face savoring food=smiletongue; face with tongue=tongueout;
    winking face with tongue=tongueoutwink; squinting face with tongue=tongueoutwink2; neutral face=neutral;
    face with medical mask=medicalmask; smiling face with sunglasses=sunglasses; slightly frowning face=smallfrown;
    frowning face with open mouth=frownmouth; anguished face=anguish; sad but relieved face=dissapointedrelief;
    crying face=crying; loudly crying face=loudlycrying; face screaming in fear=screamfear;
    persevering face=perservere; tired face=tired; enraged face=pouting; smiling face with horns=devilhorns;
    pile of poo=poo; goblin=japaneseangrymask; skull and crossbones=blackskullcrossbones;
    see-no-evil monkey=monkeysee; hear-no-evil monkey=monkeyhear; speak-no-evil monkey=monkeyspeak;
    heart with arrow=heartarrow; heart with ribbon=heartribbon; two hearts=2hearts; yellow heart=heartyellow;
    green heart=heartgreen; purple heart=heartpurple; blue heart=; sweat droplets=sweatsplash;
    speech balloon=speechbubble; thought balloon=thoughtbaloon; waving hand=waving;
    raised back of hand=reverseraisedhandsfingerssplayed; hand with fingers splayed=raisedhandsfingerssplayed;
    vulcan salute=raisedhandpartfingers; OK hand=aok; backhand index pointing left=left;
    backhand index pointing right=right; backhand index pointing up=up; backhand index pointing down=down;
    middle finger=reversehandmiddlefinger; index pointing up=index; oncoming fist=fistedhand; raising hands=high5;
    open hands=hands; writing hand=leftwritinghand; flexed biceps=flexbicep; person: blond hair=blonde; old man=gpa;
    old woman=gma; person frowning=frown; person pouting=pout; person gesturing NO=nogesture;
    person gesturing OK=okgesture; person tipping hand=waitress; person raising hand=handup; person bowing=bowing;
    detective=sleuthspy; construction worker=construct; person wearing turban=turban; person with skullcap=guapimao;
    person with veil=bride; person getting massage=headmassage; people with bunny ears=bunny-ears;
    person swimming=swimming; women holding hands=girlgirl; woman and man holding hands=girlguy;
    men holding hands=guyguy; kiss=couplekiss; couple with heart=couple; bust in silhouette=contact;
    busts in silhouette=contact2; dog=dogside; fox=foxsmiling; cat=catside; tiger=tigerside; leopard=leopardside;
    pig=pigside; pig nose=pigsnout; mouse=mouseside; hamster=hampster; rabbit face=bunny; rabbit=bunnyside;
    front-facing baby chick=frontfacingchick; dragon face=dragonhead; dragon=dragonside;
    spouting whale=spurtingwhale; evergreen tree=evergreen; fallen leaf=fallingleaf;
    leaf fluttering in wind=leaffluttering; hot pepper=chilipepper; chestnut=acorn;
    fish cake with swirl=fishcakeswirl; fork and knife with plate=forkknife;
    globe showing Europe-Africa=europeafricaglobe; globe showing Americas=americasglobe;
    globe showing Asia-Australia=asiaaustraliaglobe; globe with meridians=meridianglobe;
    map of Japan=silhouetteohjapan; snow-capped mountain=snowmountains; beach with umbrella=beachumbrella;
    Tokyo tower=toykotower; bullet train=highspeedtrainbulletnose; tram car=; racing car=racecar;
    construction=constructionsign; building construction=construction; closed umbrella=umbrella; umbrella=; window=;
    star=whitemediumstar; glowing star=star; mantelpiece clock=manltepiececlock; twelve o’clock=clock12oclock;
    twelve-thirty=clock12thirty; one o’clock=clock1oclock; one-thirty=clock1thirty; two o’clock=clock2oclock;
    two-thirty=clock2thirty; three o’clock=clock3oclock; three-thirty=clock3thirty; four o’clock=clock4oclock;
    four-thirty=clock4thirty; five-thirty=clock5thirty; six o’clock=clock6oclock; six-thirty=clock6thirty;
    seven o’clock=clock7oclock; waning gibbous moon=waningbibbousmoon; sun=sunrays; sun behind cloud=sunbehindcloud;
    sun behind small cloud=whitesunsmallcloud; sun behind large cloud=whitesunbehindcloud;
    sun behind rain cloud=sunraincloud; cloud with lightning=stormcloud; high voltage=bolt; water wave=wave;
    confetti ball=confetti; ribbon=bow; wrapped gift=present; reminder ribbon=reminder; tennis=tennisball;
    water pistol=; sunglasses=darksunglasses; necktie=tie; t-shirt=mansshirt; woman’s clothes=womansshirt;
    purse=pinkwallet; clutch bag=makeupbag; man’s shoe=mensshoe; running shoe=mensrunner; high-heeled shoe=heels;
    woman’s sandal=sandals; muted speaker=speakercancellation; speaker medium volume=speakeronesoundwave;
    speaker high volume=speaker3soundwaves; bell with slash=bellcancellation; studio microphone=studiomic;
    control knobs=controlknob; mobile phone=cellphone; mobile phone with arrow=phonerightarrowleft;
    telephone receiver=telephonereceiver2; laptop=oldpersonalcomputer; keyboard=wiredkeyboard;
    floppy disk=floppydisk2; video camera=handheldvideocamera; videocassette=videocasette;
    magnifying glass tilted left=leftmagnifyingglass; magnifying glass tilted right=rightmagnifyingglass;
    notebook with decorative cover=notebookdecorativecover; bookmark tabs=bookmarktab; yen banknote=banknoteyen;
    dollar banknote=banknotedollar; euro banknote=banknoteeuro; pound banknote=banknotepound;
    chart increasing with yen=chartupwardstrendyen; envelope with arrow=envelopedownarrowabove; outbox tray=outbox;
    closed mailbox with raised flag=closedmailboxraised; closed mailbox with lowered flag=closedmailboxlowered;
    open mailbox with raised flag=openmailboxraised; open mailbox with lowered flag=openmailboxlowered;
    ballot box with ballot=ballottboxwithballott; pen=lowerleftpen; chart increasing=chartupwardstrend;
    chart decreasing=chartdownwardstrend; locked with key=lockandkey; potable water=potablewatersystem;
    no one under eighteen=nooneunder18symbol; right arrow curving up=arrowrightwardsupwards;
    right arrow curving down=arrowrightwardsdownwards; clockwise vertical arrows=clockwisedownupcircledarrows;
    counterclockwise arrows button=anticlockwiseupwardsanddownwardsarrows; BACK arrow=backwithleftwardsarrow;
    END arrow=endwithleftwardsarrow; ON! arrow=onarrowleftright; SOON arrow=soonwithrightarrow;
    TOP arrow=topwithupwardsarrow; latin cross=heavylatincross; dotted six-pointed star=sixpointedstarwithdot;
    Sagittarius=saggitarius; repeat button=clockwiserightwardsleftwardscirclearrows;
    repeat single button=clockwiserightwardsleftwardscirclearrowsone; play button=blackrightpointingarrow;
    fast-forward button=blackrightpointingdoublearrow; reverse button=blackleftpointingarrow;
    fast reverse button=blackleftpointingdoublearrow; upwards button=uppointingsmallredtrisngle;
    fast up button=blackuppointingdoublearrow; downwards button=downpointingsmallredtrisngle;
    fast down button=blackdownpointingdoublearrow; multiply=heavymultiplicationsymbol;
    double exclamation mark=doubleexclaimationmark; exclamation question mark=exclaimationquestionmark;
    white exclamation mark=whiteexclaimationmark; eight-spoked asterisk=eightspokedasterix;
    A button (blood type)=negativesquaredlatincaptiala; B button (blood type)=negativesquaredlatincaptialb;
    O button (blood type)=negativesquaredlatincaptialo; Japanese “reserved” button=cjkunifiedideograph-a;
    Japanese “open for business” button=cjkunifiedideograph-b; Japanese “prohibited” button=cjkunifiedideograph-c;
    Japanese “vacancy” button=cjkunifiedideograph-d; Japanese “passing grade” button=cjkunifiedideograph-e;
    Japanese “no vacancy” button=cjkunifiedideograph-f; Japanese “not free of charge” button=cjkunifiedideograph-g;
    Japanese “monthly amount” button=cjkunifiedideograph-h; Japanese “free of charge” button=cjkunifiedideograph-i;
    Japanese “application” button=cjkunifiedideograph-j; Japanese “discount” button=cjkunifiedideograph-k;
    UP! button=squaredup; diamond with a dot=diamondshapewithdotinside
    """
)
