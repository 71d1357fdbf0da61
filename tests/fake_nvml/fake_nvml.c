/* Answers as libnvidia-ml.so.1 does, from a script in place of a driver.
 *
 * Only what pynvml calls for resources/nvml.py is here. The script named by FAKE_NVML_SCRIPT is read
 * again, if it was replaced, at every nvmlInit, search by UUID and question for memory, so that a
 * test can change it while a process runs. A handle stands for a place in the script: later versions
 * must keep the devices in their order. Its lines:
 *
 *   gpu <uuid> <total MiB> <used MiB> <utilization %, -1: not supported> <mig: 0|1> <name...>
 *   mig <uuid> <total MiB> <used MiB> <name...>      an instance of the gpu above
 *   process <pid> <used MiB, -1: not told>           on the gpu or instance above
 *   fail <call> <NVML error code>                    on the gpu or instance above; before any: init
 */
#define _POSIX_C_SOURCE 200809L
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7 };
enum { MAX_DEVICES = 128, MAX_PROCESSES = 64, MAX_FAILURES = 8, TEXT = 96 };

typedef struct { unsigned pid; unsigned long long used; unsigned gpu_instance, compute_instance; } Process;
typedef struct { char call[32]; int code; } Failure;
typedef struct {
    char uuid[TEXT], name[TEXT];
    long long total_mib, used_mib;
    int utilization, has_mig, parent;
    Process processes[MAX_PROCESSES];
    Failure failures[MAX_FAILURES];
    int process_count, failure_count;
} Device;
typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { unsigned gpu, memory; } Utilization;

static Device devices[MAX_DEVICES];
static int device_count, init_code;

static int failure_of(const Device *device, const char *call) {
    for (int i = 0; i < device->failure_count; i++)
        if (!strcmp(device->failures[i].call, call)) return device->failures[i].code;
    return SUCCESS;
}

static Device *nth(int parent, unsigned index) {
    for (int i = 0; i < device_count; i++)
        if (devices[i].parent == parent && index-- == 0) return &devices[i];
    return NULL;
}

static void read_line(const char *line) {
    Device next = {.parent = -1, .utilization = -1};
    Device *last = device_count ? &devices[device_count - 1] : NULL;
    char call[32];
    int code;
    unsigned pid;
    long long used_mib;
    if (sscanf(line, "gpu %95s %lld %lld %d %d %95[^\n]", next.uuid, &next.total_mib, &next.used_mib,
               &next.utilization, &next.has_mig, next.name) == 6) {
        devices[device_count++] = next;
    } else if (sscanf(line, "mig %95s %lld %lld %95[^\n]", next.uuid, &next.total_mib, &next.used_mib,
                      next.name) == 4) {
        next.parent = last->parent == -1 ? (int)(last - devices) : last->parent;
        devices[device_count++] = next;
    } else if (sscanf(line, "process %u %lld", &pid, &used_mib) == 2) {
        Process process = {pid, used_mib < 0 ? ~0ULL : (unsigned long long)used_mib << 20, 0, 0};
        last->processes[last->process_count++] = process;
    } else if (sscanf(line, "fail %31s %d", call, &code) == 2) {
        if (!last) {
            init_code = code;
            return;
        }
        Failure *failure = &last->failures[last->failure_count++];
        strcpy(failure->call, call);
        failure->code = code;
    }
}

static int is_same(const struct stat *one, const struct stat *other) {
    return one->st_ino == other->st_ino && one->st_size == other->st_size &&
           one->st_mtim.tv_sec == other->st_mtim.tv_sec && one->st_mtim.tv_nsec == other->st_mtim.tv_nsec;
}

/* Whether there is a script. One thread at a time: pynvml calls without Python's lock. */
static int read_script(void) {
    static pthread_mutex_t door = PTHREAD_MUTEX_INITIALIZER;
    static struct stat last;
    const char *path = getenv("FAKE_NVML_SCRIPT");
    struct stat now;
    char line[512];
    FILE *script = NULL;
    pthread_mutex_lock(&door);
    int is_there = path && !stat(path, &now);
    if (is_there && !is_same(&now, &last) && (script = fopen(path, "r"))) {
        device_count = init_code = 0;
        while (device_count < MAX_DEVICES && fgets(line, sizeof line, script)) read_line(line);
        fclose(script);
        last = now;
    }
    pthread_mutex_unlock(&door);
    return is_there;
}

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    return read_script() ? init_code : 9; /* driver not loaded */
}

int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }
int nvmlShutdown(void) { return SUCCESS; }

const char *nvmlErrorString(int code) {
    (void)code;
    return "an error that pynvml has no words for";
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    for (*count = 0; nth(-1, *count); ++*count) {}
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, Device **device) {
    *device = nth(-1, index);
    return *device ? failure_of(*device, "handle") : INVALID_ARGUMENT;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, Device **device) {
    read_script();
    for (int i = 0; i < device_count; i++)
        if (!strcmp(devices[i].uuid, uuid)) {
            *device = &devices[i];
            return failure_of(*device, "handle");
        }
    return NOT_FOUND;
}

int nvmlDeviceGetUUID(Device *device, char *uuid, unsigned length) {
    snprintf(uuid, length, "%s", device->uuid);
    return failure_of(device, "uuid");
}

int nvmlDeviceGetName(Device *device, char *name, unsigned length) {
    snprintf(name, length, "%s", device->name);
    return failure_of(device, "name");
}

int nvmlDeviceGetMemoryInfo(Device *device, Memory *memory) {
    read_script();
    memory->total = (unsigned long long)device->total_mib << 20;
    memory->used = (unsigned long long)device->used_mib << 20;
    memory->free = memory->total - memory->used;
    return failure_of(device, "memory");
}

int nvmlDeviceGetUtilizationRates(Device *device, Utilization *rates) {
    rates->gpu = device->utilization < 0 ? 0 : (unsigned)device->utilization;
    rates->memory = 0;
    return device->utilization < 0 ? NOT_SUPPORTED : failure_of(device, "utilization");
}

int nvmlDeviceGetComputeRunningProcesses_v3(Device *device, unsigned *count, Process *processes) {
    unsigned room = *count;
    int code = failure_of(device, "processes");
    *count = (unsigned)device->process_count;
    if (code || !*count) return code;
    if (!processes || room < *count) return INSUFFICIENT_SIZE;
    memcpy(processes, device->processes, *count * sizeof *processes);
    return SUCCESS;
}

int nvmlDeviceGetGraphicsRunningProcesses_v3(Device *device, unsigned *count, Process *processes) {
    (void)processes;
    *count = 0;
    return failure_of(device, "processes");
}

int nvmlDeviceGetMigMode(Device *device, unsigned *current, unsigned *pending) {
    *current = *pending = (unsigned)device->has_mig;
    return failure_of(device, "mig");
}

int nvmlDeviceGetMaxMigDeviceCount(Device *device, unsigned *count) {
    *count = device->has_mig ? 7 : 0;
    return SUCCESS;
}

int nvmlDeviceGetMigDeviceHandleByIndex(Device *device, unsigned index, Device **instance) {
    *instance = nth((int)(device - devices), index);
    return *instance ? failure_of(*instance, "handle") : NOT_FOUND;
}
