/* spank_api.h answered by Slurm itself (spank(8), slurm/spank.h). Decides nothing. */
#include <slurm/slurm.h>
#include <slurm/spank.h>
#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

#include "spank_api.h"

/* Read by Slurm's plugin loader; it wants the release we were built against. */
#pragma GCC visibility push(default)
SPANK_PLUGIN(lrms_vm, 1)
#pragma GCC visibility pop

enum api_place api_place(void)
{
	switch (spank_context()) {
	case S_CTX_LOCAL:
		return API_SRUN;
	case S_CTX_ALLOCATOR:
		return API_SUBMIT;
	case S_CTX_REMOTE:
		return API_STEPD;
	case S_CTX_SLURMD:
		return API_SLURMD;
	default:
		return API_ELSEWHERE;
	}
}

static struct spank_option option(const char *name)
{
	/* Slurm's struct is older than const; it copies and does not write. */
	return (struct spank_option){.name = (char *)name, .has_arg = 1};
}

int api_option_register(struct spank_handle *spank, const char *name, const char *argument, const char *usage,
			int value, api_option_callback *callback)
{
	struct spank_option made = option(name);

	made.arginfo = (char *)argument;
	made.usage = (char *)usage;
	made.val = value;
	made.cb = callback;
	return spank_option_register(spank, &made) == ESPANK_SUCCESS ? 0 : -1;
}

int api_option_seen(struct spank_handle *spank, const char *name)
{
	struct spank_option wanted = option(name);
	char *argument = NULL;

	return spank_option_getopt(spank, &wanted, &argument) == ESPANK_SUCCESS;
}

int api_job_control_set(struct spank_handle *spank, const char *name, const char *value)
{
	return spank_job_control_setenv(spank, name, value, 1) == ESPANK_SUCCESS ? 0 : -1;
}

int api_job_variable(struct spank_handle *spank, const char *name, char *value, size_t size)
{
	spank_err_t answer = spank_getenv(spank, name, value, (int)size);

	value[size - 1] = '\0';
	return answer == ESPANK_SUCCESS || answer == ESPANK_NOSPACE;
}

int api_job_id(struct spank_handle *spank, uint32_t *job_id)
{
	return spank_get_item(spank, S_JOB_ID, job_id) == ESPANK_SUCCESS ? 0 : -1;
}

int api_step(struct spank_handle *spank, enum api_step *step)
{
	uint32_t id = 0;

	if (spank_get_item(spank, S_JOB_STEPID, &id) != ESPANK_SUCCESS)
		return -1;
	*step = id == SLURM_BATCH_SCRIPT ? API_STEP_BATCH : id == SLURM_EXTERN_CONT ? API_STEP_EXTERN : API_STEP_TASKS;
	return 0;
}

int api_argv(struct spank_handle *spank, char ***argv)
{
	int count = 0;

	return spank_get_item(spank, S_JOB_ARGV, &count, argv) == ESPANK_SUCCESS && count > 0 && *argv != NULL ? 0 : -1;
}

int api_environment(struct spank_handle *spank, char ***environment)
{
	return spank_get_item(spank, S_JOB_ENV, environment) == ESPANK_SUCCESS && *environment != NULL ? 0 : -1;
}

int api_prepend(struct spank_handle *spank, int count, const char *words[])
{
#if SLURM_VERSION_NUMBER >= SLURM_VERSION_NUM(23, 11, 0)
	return spank_prepend_task_argv(spank, count, words) == ESPANK_SUCCESS ? 0 : -1;
#else
	(void)spank;
	(void)count;
	(void)words;
	return 1;
#endif
}

void api_error(const char *format, ...)
{
	char line[1024];
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(line, sizeof(line), format, arguments);
	va_end(arguments);
	slurm_error("%s", line);
}

int api_become(const char *program, char *const argv[], char *const environment[])
{
	return execve(program, argv, environment);
}

void api_end(int code)
{
	_exit(code);
}
