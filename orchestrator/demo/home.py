"""The demo's home, told in three languages: what the product's sentence templates leave open."""

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Home:
    """Names of rooms, floors and devices, and words for what may be said freely."""

    areas: tuple[str, ...]
    floors: tuple[str, ...]
    devices: Mapping[str, tuple[str, ...]]
    """Device names by Home Assistant's domain."""
    groceries: tuple[str, ...]
    timers: tuple[str, ...]


HOMES: Mapping[str, Home] = {
    "en": Home(
        areas=(
            "kitchen", "living room", "bedroom", "bathroom", "hallway", "garage", "office",
            "dining room", "nursery", "attic", "basement", "guest room", "laundry", "terrace",
        ),
        floors=("ground", "first", "upper"),
        devices={
            "light": ("desk lamp", "reading lamp", "fairy lights", "chandelier", "spotlight"),
            "switch": ("coffee maker", "kettle", "christmas tree", "space heater"),
            "fan": ("ceiling fan", "tower fan"),
            "media_player": ("tv", "radio", "soundbar"),
            "climate": ("thermostat", "air conditioner"),
            "cover": ("roller blind", "skylight", "sun sail"),
            "lock": ("front door", "back door"),
            "valve": ("sprinkler", "water main"),
            "vacuum": ("roomba", "cleaning robot"),
            "lawn_mower": ("lawn mower",),
            "scene": ("movie night", "dinner party", "sunrise"),
            "script": ("good night routine", "morning routine"),
            "button": ("doorbell",),
            "weather": ("london", "paris"),
        },
        groceries=("milk", "apples", "olive oil", "rice", "coffee", "eggs", "bread", "soap"),
        timers=("pizza", "laundry", "tea", "workout"),
    ),
    "de": Home(
        areas=(
            "Küche", "Wohnzimmer", "Schlafzimmer", "Bad", "Flur", "Garage", "Büro", "Esszimmer",
            "Kinderzimmer", "Dachboden", "Keller", "Gästezimmer", "Waschküche", "Terrasse",
        ),
        floors=("Erdgeschoss", "Obergeschoss", "Dachgeschoss"),
        devices={
            "light": ("Schreibtischlampe", "Leselampe", "Lichterkette", "Kronleuchter"),
            "switch": ("Kaffeemaschine", "Wasserkocher", "Weihnachtsbaum", "Heizlüfter"),
            "fan": ("Deckenventilator", "Standventilator"),
            "media_player": ("Fernseher", "Radio", "Soundbar"),
            "climate": ("Thermostat", "Klimagerät"),
            "cover": ("Dachfenster", "Sonnensegel"),
            "lock": ("Haustür", "Hintertür"),
            "valve": ("Rasensprenger", "Hauptventil"),
            "vacuum": ("Roomba", "Putzroboter"),
            "lawn_mower": ("Rasenmäher",),
            "scene": ("Filmabend", "Abendessen", "Sonnenaufgang"),
            "script": ("Gute-Nacht-Routine", "Morgenroutine"),
            "button": ("Türklingel",),
            "weather": ("Berlin", "Hamburg"),
        },
        groceries=("Milch", "Äpfel", "Olivenöl", "Reis", "Kaffee", "Eier", "Brot", "Seife"),
        timers=("Pizza", "Wäsche", "Tee", "Training"),
    ),
    "es": Home(
        areas=(
            "cocina", "salón", "dormitorio", "baño", "pasillo", "garaje", "oficina", "comedor",
            "cuarto infantil", "ático", "sótano", "lavadero", "terraza", "biblioteca",
        ),
        floors=("baja", "primera", "alta"),
        devices={
            "light": ("flexo", "guirnalda", "araña", "farolillo"),
            "switch": ("cafetera", "hervidor", "árbol de navidad", "estufa"),
            "fan": ("ventilador de techo", "ventilador de torre"),
            "media_player": ("televisor", "radio", "barra de sonido"),
            "climate": ("termostato", "aire acondicionado"),
            "cover": ("claraboya", "vela de sol"),
            "lock": ("entrada principal", "entrada trasera"),
            "valve": ("aspersor", "llave de paso"),
            "vacuum": ("roomba", "robot de limpieza"),
            "lawn_mower": ("cortacésped",),
            "scene": ("noche de cine", "cena", "amanecer"),
            "script": ("rutina de noche", "rutina de mañana"),
            "button": ("timbre",),
            "weather": ("madrid", "sevilla"),
        },
        groceries=("leche", "manzanas", "aceite", "arroz", "café", "huevos", "pan", "jabón"),
        timers=("pizza", "colada", "té", "gimnasia"),
    ),
}  # fmt: skip
