"""Worked examples of reasoned answers, for questions that join two facts.

Written for this package, in the kinds of 2WikiMultihopQA (comparison, composition, inference, and
comparison after a bridge) and HotpotQA (bridge and comparison). The released code takes its own
from IRCoT (Trivedi et al. 2023).
"""

# Question and reasoned answer, which ends by saying what the answer is.
DEMONSTRATIONS = (
    (
        "Which river is longer, the Rhine or the Thames?",
        "The Rhine is more than 1,200 km long. The Thames is less than 400 km long. So the answer "
        "is the Rhine.",
    ),
    (
        "In which city was the composer of the opera The Magic Flute born?",
        "The Magic Flute was composed by Wolfgang Amadeus Mozart. Mozart was born in Salzburg. So "
        "the answer is Salzburg.",
    ),
    (
        "Who was the father of the father of Queen Elizabeth II?",
        "The father of Queen Elizabeth II was George VI. The father of George VI was George V. So "
        "the answer is George V.",
    ),
    (
        "Which film has the director who was born earlier, Psycho or Jaws?",
        "Psycho was directed by Alfred Hitchcock, who was born in 1899. Jaws was directed by "
        "Steven Spielberg, who was born in 1946. So the answer is Psycho.",
    ),
    (
        "Do the Eiffel Tower and the Brandenburg Gate stand in the same country?",
        "The Eiffel Tower stands in Paris, which is in France. The Brandenburg Gate stands in "
        "Berlin, which is in Germany. So the answer is no.",
    ),
    (
        "What is the capital of the country in which Mount Fuji stands?",
        "Mount Fuji stands in Japan. The capital of Japan is Tokyo. So the answer is Tokyo.",
    ),
    (
        "Who was born earlier, Galileo Galilei or Johannes Kepler?",
        "Galileo Galilei was born in 1564. Johannes Kepler was born in 1571. So the answer is "
        "Galileo Galilei.",
    ),
    (
        "Who was the wife of the author of the novel David Copperfield?",
        "David Copperfield was written by Charles Dickens. Charles Dickens was married to "
        "Catherine Hogarth. So the answer is Catherine Hogarth.",
    ),
    (
        "Which ocean lies west of the country whose capital is Lisbon?",
        "Lisbon is the capital of Portugal. West of Portugal lies the Atlantic Ocean. So the "
        "answer is the Atlantic Ocean.",
    ),
    (
        "On which spaceflight did the first person who walked on the Moon go there?",
        "The first person who walked on the Moon was Neil Armstrong. He went there on Apollo 11. "
        "So the answer is Apollo 11.",
    ),
    (
        "Are both the violin and the cello string instruments?",
        "The violin is a string instrument. The cello is a string instrument too. So the answer is "
        "yes.",
    ),
)
