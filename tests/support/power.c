/* Preloaded into a process under test. It appends a line to POWER_RECORD, by one write, after each call that changed
 * what a power cut would leave of the files below POWER_ROOT, and makes the disk misbehave as the numbers in
 * POWER_CONTROL say, which the harness shares. What was removed or replaced keeps a link in POWER_GRAVE. power.rs
 * compiles this, has the format of the lines, and says what is simulated.
 *
 * sync_file_range is no sync: it reaches neither the disk's own cache nor the file's metadata.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

/* What the harness sets, then what it reads. The order is known to power.rs. */
enum {
    SYNC_DELAY_MS, FAIL_SYNCS, FAIL_WRITES, HAS_BUDGET, BUDGET, SHORT_WRITES,
    SYNCS = 16, DELAYED, SYNCS_FAILED, WRITES_FAILED, NO_SPACE, SHORTENED, WORDS = 64
};

static char root[PATH_MAX], grave[PATH_MAX];
static size_t root_length;
static int record_file = -1;
static uint64_t *words, graves;

/* The real function; other preloaded libraries keep their place. */
#define NEXT(name) ({ static __typeof__(&name) next; if (!next) next = (__typeof__(&name)) dlsym(RTLD_NEXT, #name); next; })

__attribute__((constructor)) static void begin(void) {
    const char *in = getenv("POWER_ROOT"), *record = getenv("POWER_RECORD");
    const char *control = getenv("POWER_CONTROL"), *kept = getenv("POWER_GRAVE");
    if (!in || !record || !control || !kept || strlen(in) >= PATH_MAX || strlen(kept) + 64 >= PATH_MAX) return;
    int file = (int) syscall(SYS_openat, AT_FDCWD, control, O_RDWR | O_CLOEXEC, 0);
    if (file < 0) return;
    void *map = mmap(NULL, WORDS * sizeof(uint64_t), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    syscall(SYS_close, file);
    if (map == MAP_FAILED) return;
    record_file = (int) syscall(SYS_openat, AT_FDCWD, record, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    words = (uint64_t *) map;
    strcpy(root, in);
    strcpy(grave, kept);
    root_length = strlen(root);
}

static uint64_t setting(int word) { return words ? __atomic_load_n(&words[word], __ATOMIC_SEQ_CST) : 0; }
static void count(int word) { __atomic_fetch_add(&words[word], 1, __ATOMIC_SEQ_CST); }

static void record(const char *format, ...) {
    char line[3 * PATH_MAX + 128];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    int before = errno;
    if (length > 0 && (size_t) length < sizeof line) syscall(SYS_write, record_file, line, (size_t) length);
    errno = before;
}

/* True for the root, too: its sync counts. What happens to its own name does not. */
static int is_below(const char *path) {
    return strncmp(path, root, root_length) == 0 && (path[root_length] == '/' || path[root_length] == 0);
}

static int path_of(int fd, char *path) {
    char link[64];
    int before = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    path[length > 0 ? length : 0] = 0;
    errno = before;
    return length > 0;
}

static int is_ours(int fd) {
    char path[PATH_MAX];
    return words && path_of(fd, path) && is_below(path);
}

/* The whole path, if it lies below the root. A path relative to the working directory never does. */
static int find(int at, const char *path, char *whole) {
    if (!words) return 0;
    if (path[0] != '/' && (at == AT_FDCWD || !path_of(at, whole))) return 0;
    size_t length = path[0] == '/' ? 0 : strlen(whole);
    if (length + strlen(path) + 2 > PATH_MAX) return 0;
    if (length > 0) whole[length++] = '/';
    strcpy(whole + length, path);
    return is_below(whole) && whole[root_length] == '/';
}

static unsigned long directory_of(const char *whole) {
    char directory[PATH_MAX];
    struct stat found;
    strcpy(directory, whole);
    *strrchr(directory, '/') = 0;
    return stat(directory, &found) == 0 ? (unsigned long) found.st_ino : 0;
}

/* Keeps what is about to lose this name. */
static void bury(const char *whole, char *kept) {
    char name[PATH_MAX + 64];
    struct stat found;
    strcpy(kept, "-");
    if (lstat(whole, &found) != 0 || !S_ISREG(found.st_mode)) return;
    do {
        unsigned long n = __atomic_fetch_add(&graves, 1, __ATOMIC_SEQ_CST);
        snprintf(name, sizeof name, "%s/%d.%lu", grave, (int) getpid(), n);
        if (syscall(SYS_linkat, AT_FDCWD, whole, AT_FDCWD, name, 0) == 0) strcpy(kept, name);
    } while (kept[0] == '-' && errno == EEXIST);
}

static int sync_by(int fd, int (*sync)(int)) {
    struct stat found;
    uint64_t delay = setting(SYNC_DELAY_MS);
    if (!is_ours(fd) || fstat(fd, &found) != 0) return sync(fd);
    count(SYNCS);
    if (delay > 0) {
        struct timespec length = { (time_t) (delay / 1000), (long) (delay % 1000) * 1000000 };
        count(DELAYED);
        syscall(SYS_nanosleep, &length, NULL);
    }
    if (setting(FAIL_SYNCS)) {
        count(SYNCS_FAILED);
        errno = EIO;
        return -1;
    }
    int result = sync(fd);
    if (result == 0 && S_ISDIR(found.st_mode)) record("F\t%lu\n", (unsigned long) found.st_ino);
    else if (result == 0) record("S\t%lu\t%ld\n", (unsigned long) found.st_ino, (long) found.st_size);
    return result;
}

int fsync(int fd) { return sync_by(fd, NEXT(fsync)); }
int fdatasync(int fd) { return sync_by(fd, NEXT(fdatasync)); }

static int is_harmed(int fd) {
    return (setting(FAIL_WRITES) || setting(HAS_BUDGET) || setting(SHORT_WRITES)) && is_ours(fd);
}

/* How much of a write goes through; below 0 none, with errno set. */
static ssize_t allowed(int fd, size_t length) {
    if (length == 0 || !is_harmed(fd)) return (ssize_t) length;
    if (setting(FAIL_WRITES)) {
        count(WRITES_FAILED);
        errno = EIO;
        return -1;
    }
    if (setting(HAS_BUDGET)) {
        uint64_t left = setting(BUDGET), taken;
        do taken = left < length ? left : length;
        while (!__atomic_compare_exchange_n(&words[BUDGET], &left, left - taken, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST));
        if (taken < length) count(NO_SPACE);
        if (taken == 0) errno = ENOSPC;
        return taken == 0 ? -1 : (ssize_t) taken;
    }
    if (length > 1) count(SHORTENED);
    return (ssize_t) (length + 1) / 2;
}

ssize_t write(int fd, const void *bytes, size_t length) {
    ssize_t part = allowed(fd, length);
    return part < 0 ? -1 : NEXT(write)(fd, bytes, (size_t) part);
}
ssize_t pwrite64(int fd, const void *bytes, size_t length, off64_t offset) {
    ssize_t part = allowed(fd, length);
    return part < 0 ? -1 : NEXT(pwrite64)(fd, bytes, (size_t) part, offset);
}
ssize_t pwrite(int fd, const void *bytes, size_t length, off_t offset) { return pwrite64(fd, bytes, length, offset); }

/* Of several pieces only the first is written, in part, while something is wrong. */
ssize_t writev(int fd, const struct iovec *all, int n) {
    return n > 0 && is_harmed(fd) ? write(fd, all[0].iov_base, all[0].iov_len) : NEXT(writev)(fd, all, n);
}
ssize_t pwritev(int fd, const struct iovec *all, int n, off_t at) {
    return n > 0 && is_harmed(fd) ? pwrite64(fd, all[0].iov_base, all[0].iov_len, at) : NEXT(pwritev)(fd, all, n, at);
}

static int open_at(int at, const char *path, int flags, mode_t mode) {
    char whole[PATH_MAX];
    struct stat found;
    int is_new = (flags & O_CREAT) && find(at, path, whole) && lstat(whole, &found) != 0;
    int fd = (int) syscall(SYS_openat, at, path, flags, mode);
    if (fd >= 0 && is_new && fstat(fd, &found) == 0)
        record("C\t%lu\t%lu\t%s\n", directory_of(whole), (unsigned long) found.st_ino, whole);
    return fd;
}

#define OPEN(name, at, ...) int name(__VA_ARGS__, int flags, ...) { \
    va_list arguments; va_start(arguments, flags); \
    mode_t mode = (flags & (O_CREAT | O_TMPFILE)) ? va_arg(arguments, mode_t) : 0; va_end(arguments); \
    return open_at(at, path, flags, mode); }
OPEN(open, AT_FDCWD, const char *path)
OPEN(open64, AT_FDCWD, const char *path)
OPEN(openat, at, int at, const char *path)
OPEN(openat64, at, int at, const char *path)
int creat(const char *path, mode_t mode) { return open_at(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode); }

static int move(int old_at, const char *old, int new_at, const char *new_path, unsigned flags) {
    char from[PATH_MAX], to[PATH_MAX], kept[PATH_MAX] = "-";
    struct stat found;
    int ours = find(old_at, old, from) && find(new_at, new_path, to) && lstat(from, &found) == 0;
    if (ours) bury(to, kept);
    int result = (int) syscall(SYS_renameat2, old_at, old, new_at, new_path, flags);
    if (ours && result == 0)
        record("R\t%lu\t%lu\t%lu\t%s\t%s\t%s\n", directory_of(from), directory_of(to),
               (unsigned long) found.st_ino, kept, from, to);
    return result;
}

int rename(const char *old, const char *new_path) { return move(AT_FDCWD, old, AT_FDCWD, new_path, 0); }
int renameat(int a, const char *old, int b, const char *new_path) { return move(a, old, b, new_path, 0); }
int renameat2(int a, const char *old, int b, const char *new_path, unsigned f) { return move(a, old, b, new_path, f); }

static int remove_at(int at, const char *path, int flags) {
    char whole[PATH_MAX], kept[PATH_MAX] = "-";
    int ours = find(at, path, whole), is_directory = (flags & AT_REMOVEDIR) != 0;
    if (ours && !is_directory) bury(whole, kept);
    int result = (int) syscall(SYS_unlinkat, at, path, flags);
    if (ours && result == 0) record("%c\t%lu\t%s\t%s\n", is_directory ? 'X' : 'U', directory_of(whole), kept, whole);
    return result;
}

int unlink(const char *path) { return remove_at(AT_FDCWD, path, 0); }
int unlinkat(int at, const char *path, int flags) { return remove_at(at, path, flags); }
int rmdir(const char *path) { return remove_at(AT_FDCWD, path, AT_REMOVEDIR); }
int mkdirat(int at, const char *path, mode_t mode) {
    char whole[PATH_MAX];
    int ours = find(at, path, whole), result = (int) syscall(SYS_mkdirat, at, path, mode);
    if (ours && result == 0) record("M\t%lu\t%s\n", directory_of(whole), whole);
    return result;
}

int mkdir(const char *path, mode_t mode) { return mkdirat(AT_FDCWD, path, mode); }
int linkat(int old_at, const char *old, int new_at, const char *new_path, int flags) {
    char whole[PATH_MAX];
    struct stat found;
    int ours = find(new_at, new_path, whole), result = (int) syscall(SYS_linkat, old_at, old, new_at, new_path, flags);
    if (ours && result == 0 && lstat(whole, &found) == 0)
        record("L\t%lu\t%lu\t%s\n", directory_of(whole), (unsigned long) found.st_ino, whole);
    return result;
}

int link(const char *old, const char *new_path) { return linkat(AT_FDCWD, old, AT_FDCWD, new_path, 0); }
