// Counts lines, words and bytes, of its input or of the files named, as wc does: a program of WASI preview 1.
//
// Exit codes: 0 counted, 1 a file could not be read, 2 wrong use.

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

struct counts {
    unsigned long lines, words, bytes;
};

static int count(FILE *file, struct counts *counts) {
    int in_word = 0;
    for (int c = getc(file); c != EOF; c = getc(file)) {
        counts->bytes++;
        counts->lines += c == '\n';
        counts->words += !isspace(c) && !in_word;
        in_word = !isspace(c);
    }
    return ferror(file) ? -1 : 0;
}

static void print(const char *what, const struct counts *counts, const char *name) {
    if (strchr(what, 'l')) printf("%lu ", counts->lines);
    if (strchr(what, 'w')) printf("%lu ", counts->words);
    if (strchr(what, 'c')) printf("%lu ", counts->bytes);
    printf("%s\n", name);
}

int main(int argc, char **argv) {
    char what[16] = "";
    int first = 1;
    for (; first < argc && argv[first][0] == '-'; first++) {
        if (strspn(argv[first] + 1, "lwc") != strlen(argv[first] + 1) || strlen(argv[first]) != 2) {
            fprintf(stderr, "%s: %s: it is -l, -w or -c\n", argv[0], argv[first]);
            return 2;
        }
        if (strlen(what) < 3) strcat(what, argv[first] + 1);
    }
    if (!*what) strcpy(what, "lwc");
    int failed = 0;
    if (first == argc) {
        struct counts counts = {0};
        failed = count(stdin, &counts) != 0;
        print(what, &counts, "-");
    }
    for (; first < argc; first++) {
        struct counts counts = {0};
        FILE *file = fopen(argv[first], "r");
        if (!file || count(file, &counts) != 0) {
            fprintf(stderr, "%s: %s: %s\n", argv[0], argv[first], strerror(errno));
            failed = 1;
            continue;
        }
        fclose(file);
        print(what, &counts, argv[first]);
    }
    return failed;
}
