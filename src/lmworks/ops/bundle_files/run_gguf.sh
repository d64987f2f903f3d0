#!/bin/sh
# Ask the model of this folder something: ./run.sh "your question". Needs llama.cpp's llama-cli.
folder=$(cd "$(dirname "$0")" && pwd)
setting() {
    sed -n "s/^ *\"$1\": \"\{0,1\}\([^\",]*\)\"\{0,1\},\{0,1\}$/\1/p" "$folder/settings.json"
}
command -v llama-cli >/dev/null 2>&1 || {
    echo "llama-cli is not here: install llama.cpp, or use run.py" >&2
    exit 1
}
exec llama-cli --model "$folder/$(setting model)" --ctx-size "$(setting context_length)" \
    --threads "$(setting threads)" --batch-size "$(setting batch)" --temp 0 \
    --cache-type-k "$(setting cache_type)" --cache-type-v "$(setting cache_type)" \
    --single-turn --prompt "${*:-Hello!}"
