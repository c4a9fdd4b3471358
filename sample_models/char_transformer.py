"""Trains and writes char_transformer.ckpt: a small decoder that predicts nursery rhymes by the character.

One line of a rhyme is one sequence; lines differ in length, so a mask leaves the padding out, and the loss is
per token. Trained with dropout first, then without, on the objective that `curv` sees, until that is nearly flat.
"""

import jax
import jax.numpy as jnp
import numpy as np
from common import anneal, cast, cross_entropy, report, squared_norm, write

from curvcli.zoo import CharTransformer

RHYMES = """
mary had a little lamb
its fleece was white as snow
and everywhere that mary went
the lamb was sure to go
it followed her to school one day
which was against the rule
it made the children laugh and play
to see a lamb at school
humpty dumpty sat on a wall
humpty dumpty had a great fall
all the king's horses
and all the king's men
couldn't put humpty together again
jack and jill went up the hill
to fetch a pail of water
jack fell down and broke his crown
and jill came tumbling after
twinkle, twinkle, little star
how i wonder what you are
up above the world so high
like a diamond in the sky
when the blazing sun is gone
when he nothing shines upon
then you show your little light
twinkle, twinkle, all the night
baa, baa, black sheep
have you any wool
yes sir, yes sir
three bags full
one for the master
one for the dame
and one for the little boy
who lives down the lane
hey diddle diddle
the cat and the fiddle
the cow jumped over the moon
the little dog laughed
to see such sport
and the dish ran away with the spoon
little miss muffet
sat on a tuffet
eating her curds and whey
along came a spider
who sat down beside her
and frightened miss muffet away
hickory, dickory, dock
the mouse ran up the clock
the clock struck one
the mouse ran down
little bo-peep has lost her sheep
and can't tell where to find them
leave them alone, and they'll come home
bringing their tails behind them
little boy blue
come blow your horn
the sheep's in the meadow
the cow's in the corn
where is the boy
who looks after the sheep
he's under a haystack
fast asleep
little jack horner
sat in a corner
eating a christmas pie
he put in his thumb
and pulled out a plum
and said what a good boy am i
old mother hubbard
went to the cupboard
to fetch her poor dog a bone
but when she came there
the cupboard was bare
and so the poor dog had none
there was an old woman
who lived in a shoe
she had so many children
she didn't know what to do
old king cole was a merry old soul
and a merry old soul was he
he called for his pipe
and he called for his bowl
and he called for his fiddlers three
sing a song of sixpence
a pocket full of rye
four and twenty blackbirds
baked in a pie
when the pie was opened
the birds began to sing
wasn't that a dainty dish
to set before the king
the king was in his counting house
counting out his money
the queen was in the parlour
eating bread and honey
the maid was in the garden
hanging out the clothes
when down came a blackbird
and pecked off her nose
pease porridge hot
pease porridge cold
pease porridge in the pot
nine days old
some like it hot
some like it cold
some like it in the pot
nine days old
london bridge is falling down
falling down, falling down
london bridge is falling down
my fair lady
mary, mary, quite contrary
how does your garden grow
with silver bells and cockle shells
and pretty maids all in a row
the queen of hearts
she made some tarts
all on a summer's day
the knave of hearts
he stole those tarts
and took them clean away
pussy cat, pussy cat
where have you been
i've been to london
to look at the queen
jack be nimble
jack be quick
jack jump over
the candlestick
rain, rain, go away
come again another day
one, two, buckle my shoe
three, four, knock at the door
five, six, pick up sticks
seven, eight, lay them straight
nine, ten, a big fat hen
solomon grundy
born on a monday
christened on tuesday
married on wednesday
took ill on thursday
worse on friday
died on saturday
buried on sunday
and that was the end
of solomon grundy
""".strip().splitlines()

L2 = 1e-3
DROPOUT = 0.1
# The loss does not see the scale of what is normalised, but l2 does: with the usual 1e-6 it would shrink the
# embeddings towards zero, and the curvature would grow as their inverse square without the loss ever settling.
EPSILON = 0.1
T = max(map(len, RHYMES)) + 1
CHARACTERS = "\n" + "".join(sorted(set("".join(RHYMES))))  # a newline begins and ends each line
TOML = f"""
[model]
target = "curvcli.zoo:CharTransformer"
kind = "linen"
kwargs = {{ vocabulary = {len(CHARACTERS)}, length = {T}, dropout = {DROPOUT}, epsilon = {EPSILON} }}

[checkpoint]
path = "."
params = "params"

[data]
path = "rhymes.npz"
inputs = "x"
targets = "y"
mask = "mask"

[loss]
name = "softmax_cross_entropy"
l2 = {L2}
reduction = "tokens"
"""


def sequences():
    """Characters x, those that follow them y, and the mask, all [N, T]; zeros beyond the end of a line."""
    x, y, mask = (np.zeros((len(RHYMES), T), kind) for kind in (np.int32, np.int32, np.float32))
    for n, line in enumerate(RHYMES):
        ids = [CHARACTERS.index(c) for c in f"\n{line}\n"]
        length = len(ids) - 1
        x[n, :length], y[n, :length], mask[n, :length] = ids[:-1], ids[1:], 1
    return x, y, mask


x, y, mask = sequences()
print(f"{len(x)} sequences of at most {T} characters of {len(CHARACTERS)}, {int(mask.sum())} tokens in all")
model = CharTransformer(len(CHARACTERS), T, dropout=DROPOUT, epsilon=EPSILON)


def objective(params, dropout_key=None):
    rngs = None if dropout_key is None else {"dropout": dropout_key}
    logits = model.apply({"params": params}, x, deterministic=dropout_key is None, rngs=rngs)
    return jnp.sum(mask * cross_entropy(logits, y)) / mask.sum() + L2 / 2 * squared_norm(params)


params = cast(model.init(jax.random.key(0), x[:1])["params"], jnp.float32)
params = anneal(objective, params, steps=1000, learning_rate=5e-3)
report("with dropout", objective, params)
params = anneal(lambda params, _: objective(params), params, steps=3000, learning_rate=3e-3)
report("char_transformer", objective, params)
write("char_transformer", {"params": params}, TOML, "rhymes.npz", {"x": x, "y": y, "mask": mask})
