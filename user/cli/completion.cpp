// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <iostream>
#include <string>

#include "base/text.h"
#include "cli/commands.h"

// Completion scripts, made from the options that the program really has. What an option takes is its type
// name: "a|b" are the values there are, SIGNAL a signal.

namespace sockalarm::cli {
namespace {

std::vector<std::string> values_of(const CLI::Option& option) {
  const std::string type = option.get_type_name();
  return type.find('|') == std::string::npos ? std::vector<std::string>{} : CLI::detail::split(type, '|');
}
bool takes_signal(const CLI::Option& option) { return option.get_type_name() == "SIGNAL"; }
bool takes_value(const CLI::Option& option) { return option.get_items_expected_max() > 0; }

std::string joined(const std::vector<std::string>& words) { return CLI::detail::join(words, " "); }

// Of a subcommand and of its own, each name once: `fleet` has two, whose options are much the same.
std::vector<const CLI::Option*> options_of(const CLI::App& app) {
  const auto own = app.get_options();
  std::vector<const CLI::Option*> options(own.begin(), own.end());
  const auto is_known = [&](const CLI::Option& option) {
    return std::any_of(options.begin(), options.end(), [&](const CLI::Option* other) {
      return other->get_single_name() == option.get_single_name();
    });
  };
  if (app.get_parent() != nullptr)
    for (const CLI::App* sub : app.get_subcommands({}))
      for (const CLI::Option* option : sub->get_options())
        if (!is_known(*option)) options.push_back(option);
  return options;
}

std::vector<std::string> long_names(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::Option* option : options_of(app))
    for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
  return names;
}

std::string subcommand_names(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::App* sub : app.get_subcommands({})) names.push_back(sub->get_name());
  return joined(names);
}
bool has_subcommands(const CLI::App& app) { return !app.get_subcommands({}).empty(); }

// One case of what stands before the word that is completed; values may be a list with commas.
void print_bash_values(const CLI::Option& option) {
  if (!takes_value(option) || option.get_positional()) return;
  std::cout << "        --" << option.get_lnames().front() << ") ";
  if (const auto values = values_of(option); !values.empty())
    std::cout << "COMPREPLY=($(compgen -P \"$list\" -W '" << joined(values) << "' -- \"${word##*,}\"))";
  else if (takes_signal(option))
    std::cout << "COMPREPLY=($(compgen -A signal -- \"$word\"))";
  else
    std::cout << "COMPREPLY=()";
  std::cout << "; return ;;\n";
}

void print_bash_subcommand(const CLI::App& sub) {
  std::cout << "    " << sub.get_name() << ")\n      case \"${COMP_WORDS[COMP_CWORD-1]}\" in\n";
  std::string words = joined(long_names(sub));
  if (has_subcommands(sub)) words += " " + subcommand_names(sub);
  for (const CLI::Option* option : options_of(sub)) {
    print_bash_values(*option);
    if (option->get_positional())
      for (const std::string& value : values_of(*option)) words += " " + value;
  }
  std::cout << "      esac\n      COMPREPLY=($(compgen -W '" << words << "' -- \"$word\")) ;;\n";
}

void print_bash(const CLI::App& app) {
  std::cout << R"(_sockalarm() {
  local word="${COMP_WORDS[COMP_CWORD]}" list="" i
  [[ "$word" == *,* ]] && list="${word%,*},"
  if [ "${COMP_WORDS[1]}" = run ]; then
    for ((i = 2; i < COMP_CWORD; i++)); do
      [ "${COMP_WORDS[i]}" = -- ] || continue
      if declare -F _command_offset >/dev/null; then
        _command_offset $((i + 1))  # of bash-completion: the command's own completion
      elif [ $((i + 1)) -eq "$COMP_CWORD" ]; then
        COMPREPLY=($(compgen -A command -- "$word"))
      fi
      return
    done
  fi
  case "$COMP_CWORD:${COMP_WORDS[1]}" in
    1:*) COMPREPLY=($(compgen -W ')"
            << subcommand_names(app) << " " << joined(long_names(app)) << R"(' -- "$word")); return ;;
  esac
  case "${COMP_WORDS[1]}" in
)";
  for (const CLI::App* sub : app.get_subcommands({})) print_bash_subcommand(*sub);
  std::cout << "  esac\n}\ncomplete -o default -F _sockalarm sockalarm\n";
}

// Within '...[description]' of _arguments.
std::string zsh_text(std::string text) {
  for (const char* special : {"\\", "[", "]", ":"})
    for (std::size_t at = 0; (at = text.find(special, at)) != std::string::npos; at += 2)
      text.insert(at, "\\");
  for (std::size_t at = 0; (at = text.find('\'', at)) != std::string::npos; at += 4)
    text.replace(at, 1, "'\\''");
  return text;
}

std::string zsh_values(const CLI::Option& option) {
  if (const auto values = values_of(option); !values.empty()) {
    const bool list = option.check_lname("on");
    return list ? "_values -s , event " + joined(values) : "(" + joined(values) + ")";
  }
  return takes_signal(option) ? "_signals" : " ";
}

void print_zsh_subcommand(const CLI::App& sub) {
  std::cout << "    " << sub.get_name() << ") _arguments -S";
  if (has_subcommands(sub)) std::cout << " \\\n      '1: :(" << subcommand_names(sub) << ")'";
  for (const CLI::Option* option : options_of(sub)) {
    if (option->get_positional()) {
      if (const auto values = values_of(*option); !values.empty())
        std::cout << " \\\n      '1: :(" << joined(values) << ")'";
      continue;
    }
    for (const std::string& name : option->get_lnames()) {
      std::cout << " \\\n      '" << (option->check_lname("then") || option->check_lname("filter") ? "*" : "")
                << "--" << name << "[" << zsh_text(option->get_description()) << "]";
      if (takes_value(*option)) std::cout << ": :" << zsh_values(*option);
      std::cout << "'";
    }
  }
  std::cout << " ;;\n";
}

void print_zsh(const CLI::App& app) {
  std::cout << R"(#compdef sockalarm
_sockalarm() {
  local end=${words[(i)--]}
  if ((CURRENT == 2)); then
    compadd -- )"
            << subcommand_names(app) << R"(
    return
  fi
  if [[ $words[2] == run ]] && ((end < CURRENT)); then
    shift $end words
    ((CURRENT -= end))
    _normal
    return
  fi
  local subcommand=$words[2]
  shift words
  ((CURRENT--))
  case $subcommand in
)";
  for (const CLI::App* sub : app.get_subcommands({})) print_zsh_subcommand(*sub);
  std::cout << R"(  esac
}
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then
  _sockalarm "$@"
else
  compdef _sockalarm sockalarm
fi
)";
}

void print_fish(const CLI::App& app) {
  for (const CLI::App* sub : app.get_subcommands({})) {
    std::cout << "complete -c sockalarm -n __fish_use_subcommand -a " << sub->get_name() << " -d '"
              << sub->get_description() << "'\n";
    const std::string head =
        "complete -c sockalarm -n '__fish_seen_subcommand_from " + sub->get_name() + "' ";
    if (has_subcommands(*sub)) std::cout << head << "-x -a '" << subcommand_names(*sub) << "'\n";
    for (const CLI::Option* option : options_of(*sub)) {
      const auto values = values_of(*option);
      const std::string arguments =
          values.empty() ? takes_value(*option) ? " -x" : "" : " -x -a '" + joined(values) + "'";
      if (option->get_positional() && !values.empty()) std::cout << head << arguments.substr(1) << "\n";
      for (const std::string& name : option->get_lnames())
        std::cout << head << "-l " << name << arguments << "\n";
    }
  }
}

}  // namespace

void add_completion(CLI::App& app, Task& chosen) {
  CLI::App* sub = app.add_subcommand("completion", "Print a completion script for a shell");
  auto shell = std::make_shared<std::string>();
  sub->add_option("SHELL", *shell, "the shell")->required()->type_name("bash|zsh|fish");
  sub->footer(
      "Examples:\n"
      "  source <(sockalarm completion bash)\n"
      "  source <(sockalarm completion zsh)      # after compinit; or as a file _sockalarm in $fpath\n"
      "  sockalarm completion fish > ~/.config/fish/completions/sockalarm.fish");
  sub->callback([&app, &chosen, shell] {
    chosen = [&app, shell] {
      if (*shell == "bash") {
        print_bash(app);
      } else if (*shell == "zsh") {
        print_zsh(app);
      } else if (*shell == "fish") {
        print_fish(app);
      } else {
        say("sockalarm completion: unknown shell " + sockalarm::quoted(*shell) +
            "; expected bash, zsh or fish");
        return kExitFailed;
      }
      return 0;
    };
  });
}

}  // namespace sockalarm::cli
