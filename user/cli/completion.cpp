// SPDX-License-Identifier: Apache-2.0
#include <iostream>
#include <string>

#include "cli/commands.h"

// Completion scripts, made from the options that the program really has.

namespace sockalarm::cli {
namespace {

std::string option_names(const CLI::App& app) {
  std::string names;
  for (const CLI::Option* option : app.get_options())
    for (const std::string& name : option->get_lnames()) names += (names.empty() ? "--" : " --") + name;
  return names;
}

void print_bash(const CLI::App& app) {
  std::string subcommands;
  std::cout << "_sockalarm() {\n  local word=\"${COMP_WORDS[COMP_CWORD]}\"\n  case \"${COMP_WORDS[1]}\" in\n";
  for (const CLI::App* sub : app.get_subcommands({})) {
    subcommands += (subcommands.empty() ? "" : " ") + sub->get_name();
    std::cout << "    " << sub->get_name() << ") COMPREPLY=($(compgen -W '" << option_names(*sub)
              << "' -- \"$word\")) ;;\n";
  }
  std::cout << "    *) COMPREPLY=($(compgen -W '" << subcommands << " " << option_names(app)
            << "' -- \"$word\")) ;;\n"
            << "  esac\n}\ncomplete -o default -F _sockalarm sockalarm\n";
}

void print_fish(const CLI::App& app) {
  for (const CLI::App* sub : app.get_subcommands({})) {
    std::cout << "complete -c sockalarm -n __fish_use_subcommand -a " << sub->get_name() << " -d '"
              << sub->get_description() << "'\n";
    for (const CLI::Option* option : sub->get_options())
      for (const std::string& name : option->get_lnames())
        std::cout << "complete -c sockalarm -n '__fish_seen_subcommand_from " << sub->get_name() << "' -l "
                  << name << "\n";
  }
}

}  // namespace

void add_completion(CLI::App& app, Task& chosen) {
  CLI::App* sub = app.add_subcommand("completion", "Print a completion script for a shell");
  auto shell = std::make_shared<std::string>();
  sub->add_option("SHELL", *shell, "bash, zsh or fish")
      ->required()
      ->check(CLI::IsMember({"bash", "zsh", "fish"}));
  sub->footer(
      "Examples:\n"
      "  source <(sockalarm completion bash)\n"
      "  sockalarm completion fish > ~/.config/fish/completions/sockalarm.fish");
  sub->callback([&app, &chosen, shell] {
    chosen = [&app, shell] {
      if (*shell == "fish") {
        print_fish(app);
        return 0;
      }
      if (*shell == "zsh") std::cout << "autoload -U +X bashcompinit && bashcompinit\n";
      print_bash(app);
      return 0;
    };
  });
}

}  // namespace sockalarm::cli
