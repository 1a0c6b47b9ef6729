"""Generate: a character model learns Python's language reference and continues a prompt.

`python benchmarks/examples/generate.py`.
"""

from pydoc_data.topics import topics

import gpurnn

text = "\n\n".join(topics[name].strip() for name in sorted(topics))[:200_000]
held_out = len(text) * 9 // 10

model = gpurnn.LanguageModel(gpurnn.CharVocabulary.from_text(text), 32, 128, cell="gru")
print(model)
trainer = model.fit(
    text[:held_out], validation=text[held_out:], epochs=3, window=64, batch_size=32, optimizer=gpurnn.Adam(0.01)
).trainer_

print(f"bits per character of the last tenth: {trainer.history[-1]['validation_bits_per_character']:.2f}")
print("The statement" + model.sample(200, prompt="The statement", temperature=0.7, rng=1))
