#!/bin/sh
# Every task of the embedded any-to-any model, a line each; what one makes, the next is given.
#
#     mmgen-export --model everyday --fp16 -o build/everyday.mmgen
#     sh examples/everyday.sh build/everyday.mmgen build/made
set -eu
bundle=$1 made=$2
mkdir -p "$made"

# text to picture, picture to text, and questions about it, the second of which refers to the first
mmgen generate "$bundle" --want picture --text "red apple" -o "$made/apple.png"
mmgen generate "$bundle" --want text --picture "$made/apple.png"
mmgen generate "$bundle" --want text --picture "$made/apple.png" --text "what is this?"
mmgen generate "$bundle" --want text --picture "$made/apple.png" --text "what is this? red apple. and what colour is it?"

# text to speech, speech to text, speech to picture
mmgen generate "$bundle" --want sound --text "fire engine" -o "$made/engine.wav"
mmgen generate "$bundle" --want text --sound "$made/engine.wav"
mmgen generate "$bundle" --want picture --sound "$made/engine.wav" -o "$made/engine.png"

# text to film, film to text
mmgen generate "$bundle" --want film --text "rocket moving up" -o "$made/rocket.gif"
mmgen generate "$bundle" --want text --film "$made/rocket.gif"

# text to stroke, stroke to text
mmgen generate "$bundle" --want series --text "spiral" -o "$made/spiral.csv"
mmgen generate "$bundle" --want text --series "$made/spiral.csv"

# retrieval: the nearest pictures to words
mmgen embed "$bundle" "$made/apple.png" "$made/engine.png" -o "$made/pictures.npz"
mmgen search "$bundle" "$made/pictures.npz" "red apple"
