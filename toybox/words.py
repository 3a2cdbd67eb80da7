"""Common English words that are single tokens in addition to the world's, because users write their own prompts."""

DREAMBOOTH = """
backpack stuffed animal plushie bowl berry can candle cat clock sneaker dog boot fancy toy duck glasses sunglasses
cartoon teapot vase monster robot sloth wolf colorful shiny wheat field tree autumn leaves ocean milk mirror sidewalk
crowded dirt road white wearing hat santa rainbow scarf black top monocle chef outfit firefighter police pink yellow
shirt wizard wet cube shaped red purple
"""

COMMON = """
the of and to in is it you that he was for on are with as his they be at one have this from or had by hot but some
what there we out other were all your when up use word how said an each she which do their time if will way about many
then them would write like so these her long make thing see him two has look more day could go come did my sound no
most number who over know water than call first people may down side been now find any new work part take get place
made live where after back little only round man year came show every good me give our under name very through just
form much great think say help low line before turn cause same mean differ move right boy old too does tell sentence
set three want air well also play small end put home read hand port large spell add even land here must big high such
follow act why ask men change went light kind off need house picture try us again point mother world near build self
earth father head stand own page should country found answer school grow study still learn plant cover food sun four
between state keep eye never last let thought city cross farm hard start might story saw far sea draw left late run
while press close night real life few north open seem together next walk ease both mark often letter until mile river
car feet care second enough plain girl young ready above ever list though feel talk bird soon body family direct leave
song measure door product short wind question happen complete ship area half rock order fire south problem piece told
knew pass since whole king space heard best hour better true during hundred five remember step early hold west ground
interest reach fast sing listen six table travel less morning ten simple several toward war lay against pattern slow
center love person money serve appear map rain rule pull cold notice voice unit power town fine certain fly fall lead
cry dark machine note wait plan figure star box noun rest correct able pound done beauty drive stood contain front
teach week final gave green quick develop warm free minute strong special mind behind clear tail produce fact street
inch nothing course stay wheel full force blue object decide surface deep moon island foot system busy test record
boat common gold possible plane dry wonder laugh thousand ago ran check game shape yes miss brought heat snow tire
bring distant fill east paint language among grand ball yet wave drop heart present heavy dance engine position arm
wide sail material size vary settle speak weight general ice matter circle pair include divide felt perhaps pick
sudden count square reason length represent art subject region energy hunt bed brother egg ride cell believe forest
sit race window store summer train sleep prove leg exercise wall catch mount wish sky board joy winter wild instrument
kept glass grass cow job edge sign visit past soft fun bright gas weather month million bear finish happy hope flower
clothe strange gone jump baby eight village meet root buy raise solve metal whether push seven third shall held hair
describe cook floor either result burn hill safe century consider type law bit coast copy phrase silent tall sand soil
roll temperature finger industry value fight lie beat excite natural view sense ear else quite broke case middle kill
son lake moment scale loud spring observe child straight nation dictionary speed method organ pay age section dress
cloud surprise quiet stone tiny climb cool design poor lot experiment bottom key iron single stick flat twenty skin
smile crease hole trade melody trip office receive row mouth exact symbol die least trouble shout except wrote seed
tone join suggest clean break lady yard rise bad blow oil blood touch grew cent mix team wire cost lost brown wear
garden equal sent choose fell fit flow fair bank collect save control decimal gentle woman captain practice separate
difficult doctor please protect noon whose locate ring character insect caught period indicate radio spoke atom human
history effect electric expect crop modern element hit student corner party supply bone rail imagine provide agree
thus capital chair danger fruit rich thick soldier process operate guess necessary sharp wing create neighbor wash bat
rather crowd corn compare poem string bell depend meat rub tube famous dollar stream fear sight thin triangle planet
hurry chief colony mine tie enter major fresh search send gun allow print dead spot desert suit current lift rose
continue block chart sell success company event particular deal swim term opposite wife shoe shoulder spread arrange
camp invent cotton born determine quart nine truck noise level chance gather shop stretch throw shine property column
select wrong gray repeat require broad prepare salt nose plural anger claim continent photo image portrait painting
drawing sketch style digital render studio cinematic detailed realistic beautiful cute lovely background foreground
closeup angle shot camera lens blur bokeh sunset sunrise dawn dusk evening lit candlelight neon foggy misty stormy
sunny cloudy rainy snowy watercolor pencil ink pixel vintage retro minimal abstract fantasy magic castle dragon
princess knight pirate astronaut superhero
"""


def common_words() -> list[str]:
    """Return the words of the lists above without duplicates."""
    return list(dict.fromkeys(f"{DREAMBOOTH} {COMMON}".split()))
