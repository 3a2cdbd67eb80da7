"""The objects of the toy world: names, class nouns and sprites.

Objects in HELD_OUT are excluded from all training, of the autoencoder and of the base model: they are the subjects of
samples and tests.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class WorldObject:
    """An object: its name in captions, the code point of its sprite, and its class noun."""

    name: str
    code: str
    noun: str


def _parse(codes: Mapping[str, str]) -> Iterator[WorldObject]:
    for noun, entries in codes.items():
        for entry in entries.split():
            name, code = entry.split("=")
            yield WorldObject(name.replace("_", " "), code, noun)


OBJECT_CODES = {
    "animal": """
        fox=1f98a rabbit=1f430 frog=1f438 panda=1f43c pig=1f437 bear=1f43b lion=1f981 elephant=1f418 giraffe=1f992
        cow=1f42e whale=1f433 turtle=1f422 crab=1f980 fish=1f420 ladybug=1f41e dinosaur=1f995 tiger=1f42f
        koala=1f428 mouse=1f42d hamster=1f439 horse=1f434 sheep=1f411 snail=1f40c butterfly=1f98b bee=1f41d
        dolphin=1f42c shark=1f988 zebra=1f993 unicorn=1f984 camel=1f42a kangaroo=1f998 squirrel=1f43f-fe0f rat=1f400
        ox=1f402 water_buffalo=1f403 leopard=1f406 hare=1f407 dragon=1f409 crocodile=1f40a snake=1f40d
        stallion=1f40e ram=1f40f goat=1f410 piglet=1f416 boar=1f417 caterpillar=1f41b ant=1f41c herring=1f41f
        pufferfish=1f421 wolf=1f43a spider=1f577-fe0f deer=1f98c gorilla=1f98d lizard=1f98e rhino=1f98f shrimp=1f990
        squid=1f991 cricket=1f997 llama=1f999 hippo=1f99b raccoon=1f99d lobster=1f99e badger=1f9a1 mammoth=1f9a3
        sloth=1f9a5 otter=1f9a6 orangutan=1f9a7 skunk=1f9a8 beaver=1f9ab bison=1f9ac seal=1f9ad scorpion=1f982
        bat=1f987 moose=1face donkey=1facf jellyfish=1fabc beetle=1fab2 worm=1fab1 polar_bear=1f43b-200d-2744-fe0f
        fly=1fab0
    """,
    "bird": """
        chick=1f424 owl=1f989 flamingo=1f9a9 parrot=1f99c duck=1f986 rooster=1f413 swan=1f9a2 hatching_chick=1f423
        cardinal=1f426 turkey=1f983 eagle=1f985 peacock=1f99a dodo=1f9a4 dove=1f54a-fe0f hen=1f414 goose=1fabf
    """,
    "dog": "dog=1f436 poodle=1f429 puppy=1f415",
    "cat": "cat=1f431 black_cat=1f408-200d-2b1b tabby_cat=1f408",
    "toy": """
        teddy_bear=1f9f8 snowman=26c4 football=26bd basketball=1f3c0 balloon=1f388 kite=1fa81 billiard_ball=1f3b1
        dice=1f3b2 rugby_ball=1f3c9 volleyball=1f3d0 baseball=26be frisbee=1f94f yo_yo=1fa80 pinata=1fa85
        nesting_doll=1fa86 puzzle_piece=1f9e9 gift=1f381 ghost=1f47b alien=1f47d monster=1f47e flying_saucer=1f6f8
        skateboard=1f6f9 roller_skate=1f6fc yarn=1f9f6 sled=1f6f7 joystick=1f579-fe0f game_controller=1f3ae
        boxing_glove=1f94a tennis_racket=1f3be dartboard=1f3af
    """,
    "fruit": """
        apple=1f34e banana=1f34c strawberry=1f353 orange=1f34a grapes=1f347 watermelon=1f349 lemon=1f34b pear=1f350
        cherry=1f352 peach=1f351 melon=1f348 kiwi=1f95d coconut=1f965 mango=1f96d blueberries=1fad0 olive=1fad2
    """,
    "food": """
        hamburger=1f354 pizza=1f355 doughnut=1f369 ice_cream=1f366 cupcake=1f9c1 cookie=1f36a cheese=1f9c0
        lollipop=1f36d taco=1f32e fries=1f35f burrito=1f32f croissant=1f950 baguette=1f956 pancakes=1f95e
        dumpling=1f95f pretzel=1f968 sandwich=1f96a bagel=1f96f waffle=1f9c7 butter=1f9c8
        rice_ball=1f359 sushi=1f363 dango=1f361 chocolate_bar=1f36b candy=1f36c pudding=1f36e honey_pot=1f36f
        shortcake=1f370 birthday_cake=1f382 bread=1f35e drumstick=1f357 ham=1f356 steak=1f969 bacon=1f953
        popcorn=1f37f hot_dog=1f32d egg=1f95a
    """,
    "vegetable": """
        carrot=1f955 broccoli=1f966 tomato=1f345 corn=1f33d pumpkin=1f383 eggplant=1f346 cucumber=1f952 potato=1f954
        lettuce=1f96c garlic=1f9c4 onion=1f9c5 chili_pepper=1f336-fe0f bell_pepper=1fad1 avocado=1f951 peanut=1f95c
        beans=1fad8
    """,
    "flower": """
        rose=1f339 tulip=1f337 hibiscus=1f33a daisy=1f33c cherry_blossom=1f338 sunflower=1f33b lotus=1fab7
        bouquet=1f490 hyacinth=1fabb
    """,
    "vehicle": """
        taxi=1f695 blue_car=1f699 tractor=1f69c rocket=1f680 sailboat=26f5 airplane=2708-fe0f bus=1f68c
        helicopter=1f681 train=1f682 bullet_train=1f684 tram=1f68a minibus=1f690
        ambulance=1f691 police_car=1f693 hatchback=1f697 delivery_truck=1f69a ship=1f6a2 speedboat=1f6a4
        bicycle=1f6b2 scooter=1f6f4 moped=1f6f5 canoe=1f6f6 rickshaw=1f6fa pickup_truck=1f6fb motorcycle=1f3cd-fe0f
        race_car=1f3ce-fe0f biplane=1f6e9-fe0f ferry=26f4-fe0f shopping_cart=1f6d2
    """,
    "instrument": """
        guitar=1f3b8 drum=1f941 trumpet=1f3ba violin=1f3bb saxophone=1f3b7 piano=1f3b9 banjo=1fa95 accordion=1fa97
        conga=1fa98 maracas=1fa87 horn=1f4ef bell=1f514
    """,
    "plant": """
        cactus=1f335 mushroom=1f344 seedling=1f331 pine_tree=1f332 oak_tree=1f333 palm_tree=1f334 clover=1f340
        maple_leaf=1f341 potted_plant=1fab4 christmas_tree=1f384
    """,
    "backpack": "backpack=1f392",
    "bag": "handbag=1f45c briefcase=1f4bc",
    "clock": "alarm_clock=23f0 mantel_clock=1f570-fe0f stopwatch=23f1-fe0f wall_clock=23f2-fe0f watch=231a",
    "shoe": "loafer=1f45e high_heel=1f460 sandal=1f461",
    "sneaker": "sneaker=1f45f",
    "boot": "boot=1f97e tall_boot=1f462",
    "teapot": "teapot=1fad6",
    "hat": "top_hat=1f3a9 sun_hat=1f452 graduation_cap=1f393 baseball_cap=1f9e2 helmet=1fa96",
    "candle": "candle=1f56f-fe0f",
    "crown": "crown=1f451",
    "vase": "vase=1f3fa jar=1fad9",
    "bowl": "bowl=1f963 noodle_bowl=1f35c salad=1f957 rice_bowl=1f35a",
    "can": "can=1f96b",
    "glasses": "glasses=1f453 sunglasses=1f576-fe0f goggles=1f97d",
    "gadget": """
        light_bulb=1f4a1 camera=1f4f7 laptop=1f4bb television=1f4fa telephone=260e-fe0f headphones=1f3a7
        flashlight=1f526 radio=1f4fb
    """,
    "tool": """
        key=1f511 hammer=1f528 scissors=2702-fe0f magnet=1f9f2 axe=1fa93 telescope=1f52d umbrella=2602-fe0f
        bucket=1faa3
    """,
    "furniture": "chair=1fa91 couch=1f6cb-fe0f bed=1f6cf-fe0f bathtub=1f6c1",
    "drink": "coffee=2615 beer=1f37a wine=1f377 soda=1f964",
    "treasure": "trophy=1f3c6 medal=1f3c5 diamond=1f48e ring=1f48d",
    "building": "house=1f3e0 castle=1f3f0 tent=26fa",
}
"""Names and sprite code points of the objects of each class noun."""

OBJECTS: tuple[WorldObject, ...] = tuple(_parse(OBJECT_CODES))
"""All objects that are named in captions."""

HELD_OUT: tuple[WorldObject, ...] = tuple(
    _parse(
        {
            "toy": "octopus=1f419 robot=1f916",
            "animal": "t_rex=1f996 hedgehog=1f994 monkey=1f435 penguin=1f427",
            "vehicle": "fire_engine=1f692",
            "fruit": "pineapple=1f34d",
        }
    )
)

_BY_NAME = {entry.name: entry for entry in (*OBJECTS, *HELD_OUT)}


def find_object(name: str) -> WorldObject:
    """Return the object called ``name``, held out or not. Raises ValueError with the valid names."""
    if name not in _BY_NAME:
        raise ValueError(f"there is no object called {name!r}; there are: {', '.join(sorted(_BY_NAME))}")
    return _BY_NAME[name]
