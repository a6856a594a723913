# Ports for servers that a script starts on loopback. Source it.

# listens PORT: something accepts connections there.
listens() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# free_port: a port that nothing listens on now.
free_port() {
    local candidate
    while :; do
        candidate=$((10000 + RANDOM % 20000))
        listens "$candidate" || { echo "$candidate"; return; }
    done
}
